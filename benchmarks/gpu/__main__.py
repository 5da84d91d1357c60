"""All parts one after the other, each in a process of its own, with a limit of time.

    python -m benchmarks.gpu FOLDER [PART ...]

`benchmarks/gpu_day.sh` is the same with its environment set. `FOLDER/gpu_day.json` holds the
figures, one key a part, and `FOLDER/logs.txt` what the parts printed. Both are written anew every
second or two, so that a stop at any time loses nothing; parts that are not run keep their figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
# Seconds that each part may take, in the order of importance.
LIMITS = {
    "environment": 30,
    "correctness": 60,
    "tests": 75,
    "scan": 50,
    "head": 70,
    "tuning": 60,
    "published": 30,
    "compiled": 60,
}
TOTAL_S = 290
MIN_S = 5  # a part is not begun with less
REFRESH_S = 1.5
SHOWN_LINES = 15  # of the log of a part that failed


class Results:
    """What the parts have left so far, in two files.

    Args:
        folder: Where the files stand, or will.
        parts: A folder in which each part keeps `PART.json` and `PART.log`.
    """

    def __init__(self, folder: Path, parts: Path) -> None:
        self.json, self.logs, self.parts = folder / "gpu_day.json", folder / "logs.txt", parts
        self.figures: dict[str, Any] = {}
        if self.json.exists():
            self.figures = json.loads(self.json.read_text(encoding="utf-8"))
        self.log = self.logs.read_text(encoding="utf-8") if self.logs.exists() else ""
        self.outcomes: dict[str, tuple[float, str]] = {}

    def set(self, part: str, seconds: float, outcome: str) -> None:
        """Note how long a part took and how it ended."""
        self.outcomes[part] = seconds, outcome
        self.refresh()

    def refresh(self) -> None:
        """Write both files anew."""
        figures, log = dict(self.figures), self.log
        for part, (seconds, outcome) in self.outcomes.items():
            file = self.parts / f"{part}.json"
            kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            figures[part] = {"outcome": outcome, "seconds": round(seconds, 1), **kept}
            log += f"\n===== {part}: {outcome}, {seconds:.1f} s\n{self.part_log(part)}"
        write_whole(self.json, json.dumps(figures, indent=2) + "\n")
        write_whole(self.logs, log)

    def part_log(self, part: str) -> str:
        """Return what a part has printed."""
        file = self.parts / f"{part}.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def main() -> int:
    """Run the parts; return 1 if one did not end well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--total", type=float, default=TOTAL_S, help="seconds, at most")
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(LIMITS)}")
    options = parser.parse_args()
    if str(options.folder) in LIMITS or not set(options.parts) <= set(LIMITS):
        parser.error(f"expected FOLDER, then some of {', '.join(LIMITS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    options.folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.total
    with tempfile.TemporaryDirectory() as parts:
        results = Results(options.folder.resolve(), Path(parts))
        try:
            for part in options.parts or LIMITS:
                run(part, results, deadline, tiny=options.tiny)
        finally:
            results.refresh()
            table(results)
    return int(any(outcome != "done" for _, outcome in results.outcomes.values()))


def run(part: str, results: Results, deadline: float, *, tiny: bool) -> None:
    """Run a part in a process group of its own, and end all of it with the part."""
    limit = min(LIMITS[part], deadline - time.monotonic())
    if limit < MIN_S:
        results.set(part, 0.0, "skipped: no time is left")
        return
    print(f"{part}: {limit:.0f} s at most", flush=True)
    command = [sys.executable, "-u", "-m", f"benchmarks.gpu.{part}"]
    command += ["--json", str(results.parts / f"{part}.json"), *(["--tiny"] if tiny else [])]
    begin = time.monotonic()
    outcome = "interrupted"
    with (results.parts / f"{part}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            outcome = wait(process, part, results, begin, limit)
        finally:
            kill_group(process)
            results.set(part, time.monotonic() - begin, outcome)
    if outcome != "done":
        print("\n".join(results.part_log(part).splitlines()[-SHOWN_LINES:]), flush=True)


def wait(
    process: subprocess.Popen[bytes], part: str, results: Results, begin: float, limit: float
) -> str:
    """Wait for a part, keeping the files fresh; return how it ended."""
    while True:
        left = begin + limit - time.monotonic()
        try:
            code = process.wait(timeout=max(0.0, min(REFRESH_S, left)))
        except subprocess.TimeoutExpired:
            if left <= 0:
                return f"stopped after {limit:.0f} s"
            results.set(part, time.monotonic() - begin, "running")
            continue
        return "done" if code == 0 else f"failed with exit code {code}"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started, which may outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def table(results: Results) -> None:
    """Print how each part ended."""
    print(f"\n{'part':<12} {'seconds':>8}  outcome")
    for part, (seconds, outcome) in results.outcomes.items():
        print(f"{part:<12} {seconds:>8.1f}  {outcome}")
    print(f"figures in {results.json}, output in {results.logs}", flush=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once: a stop leaves the old one or the new one."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
