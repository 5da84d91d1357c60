"""The command: `muse-adapter patch clip4clip|xclip PATH`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from muse_adapter.patching import checkout
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import HOSTS, Host
from muse_adapter.patching.plan import Plan, make_plan, restrict, unpatched

SUMMARY = "insert the MUSE head into a CLIP4Clip or X-CLIP checkout"
DESCRIPTION = (
    "Without an option: shows the unified diff of your own tree and changes nothing. Lines are "
    "only inserted, each between two marker comments; which and where: examples/README.md."
)
# Exit statuses of --check.
STATUS = {"applied": 0, "not applied": 1, "partly applied": 3}


def add_patch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `patch` to the commands."""
    parser = commands.add_parser("patch", help=SUMMARY, description=DESCRIPTION)
    parser.add_argument("host", choices=sorted(HOSTS), help="the code base")
    add_options(parser)
    parser.set_defaults(run=patch)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds everything but the code base's name."""
    parser.add_argument("path", help="folder of the checkout")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--write", action="store_true", help="insert the lines")
    actions.add_argument(
        "--reverse", action="store_true", help="take them out: byte for byte the tree before"
    )
    actions.add_argument(
        "--check",
        action="store_true",
        help="say whether they are there: exit status 0 applied, 1 not applied, 3 partly (and "
        "where), 2 if the checkout is not understood",
    )
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="write into files that have uncommitted changes too",
    )
    names = parser.add_argument_group("names in a fork")
    names.add_argument("--main-file", metavar="FILE", help="the main script")
    for field in fields(Host):
        if field.name != "main_files":
            what = field.name.replace("_", " ")
            kind = field.name.rpartition("_")[2].upper()
            option = f"--{field.name.replace('_', '-')}"
            names.add_argument(option, metavar=kind, help=f"the {what}")


def patch(arguments: argparse.Namespace) -> int:
    """Shows, writes, reverses or checks; returns the exit status."""
    names = {field.name: getattr(arguments, field.name, None) for field in fields(Host)}
    names.pop("main_files")
    host = restrict(HOSTS[arguments.host], main_file=arguments.main_file, **names)
    try:
        if arguments.reverse:
            return _write(unpatched(arguments.path, host), "taken out of")
        plan = make_plan(arguments.path, host)
        if arguments.check:
            print(plan.state)
            if plan.state == "partly applied":
                print("\n".join(plan.faults()))
            return STATUS[plan.state]
        if arguments.write:
            if not arguments.allow_dirty:
                _refuse_dirty(arguments.path, plan)
            return _write(plan, "inserted into")
        plan.contents()  # what could not be written is not shown either
        _show(plan)
    except PatchError as error:
        print(f"muse-adapter patch: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"muse-adapter patch: nothing was written: {error}", file=sys.stderr)
        return 2
    return 0


def main(host: str, arguments: list[str] | None = None) -> int:
    """The same for one code base, as the scripts in examples/ call it."""
    parser = argparse.ArgumentParser(description=f"{SUMMARY} ({host}). {DESCRIPTION}")
    add_options(parser)
    parser.set_defaults(host=host)
    return patch(parser.parse_args(arguments))


def _write(plan: Plan, done: str) -> int:
    contents = plan.contents()
    checkout.write_all(contents)
    if not contents:
        print("nothing to do")
    for change in plan.changes:
        if change.source.path in contents:
            blocks = change.wanted or change.found
            print(f"{done} {change.source.name}: {', '.join(block.place for block in blocks)}")
    return 0


def _refuse_dirty(path: str, plan: Plan) -> None:
    # Files that hold blocks of ours differ from their commit for that reason alone.
    names = [change.source.name for change in plan.changes if not change.found]
    dirty = checkout.uncommitted(checkout.open_root(path), names)
    if dirty:
        raise PatchError(
            f"{', '.join(dirty)} has uncommitted changes; commit them first, or add --allow-dirty: "
            "lines are only inserted, and --reverse takes out only those"
        )


def _show(plan: Plan) -> None:
    diff = plan.diff()
    if not diff:
        print("nothing to do: applied already")
        return
    sys.stdout.flush()
    # Bytes: each file keeps its own encoding and line ends, so that the output is a usable patch.
    sys.stdout.buffer.write(diff)
    sys.stdout.buffer.flush()
