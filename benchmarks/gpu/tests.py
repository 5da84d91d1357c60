"""The tests of the repository that run kernels on a GPU where there is one.

python -m benchmarks.gpu.tests --json FILE
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

from benchmarks.gpu.part import Options, Row, run_part
from benchmarks.machine import ROOT

# What needs a GPU first: the part may be stopped for its time.
FILES = [
    "tests/ops/test_gpu.py",
    "tests/ops/test_triton_gpu.py",
    "tests/ops/test_triton_operators.py",
    "tests/ops/test_triton.py",
    "tests/ops/test_triton_limits.py",
    "tests/ops/test_self_check.py",
    "tests/ops/test_mamba_ssm_package.py",
    "tests/ops/test_mamba_ssm.py",
    "tests/ops/test_triton_compiled.py",
]
WORKERS = 8
OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
TEST = re.compile(r"tests/\S+\.py::.*?(?= (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)|$)")


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Run pytest, whose output is the log; a row for each failure, then the counts."""
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
    if options.tiny:
        command += ["tests/ops/test_triton_limits.py", "-k", "grid"]
    else:
        command += ["--durations=15", "-n", str(WORKERS), *FILES]
    counts: Counter[str] = Counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")
            outcome, test = OUTCOME.search(line), TEST.search(line)
            if "%]" not in line or not outcome or not test:
                continue
            counts[outcome[1].lower()] += 1
            if outcome[1] in ("FAILED", "ERROR"):
                yield {"what": test[0].strip(), "failed": "see the log"}
    row: Row = {"what": " ".join(command[1:]), "exit_code": process.returncode, **counts}
    if process.returncode:
        row["failed"] = f"pytest ended with code {process.returncode}"
    yield row


if __name__ == "__main__":
    main()
