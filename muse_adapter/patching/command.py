"""The command `muse-adapter patch clip4clip|xclip PATH`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from muse_adapter.patching import checkout
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import HOSTS, Host
from muse_adapter.patching.plan import Plan, make_plan, make_reverse_plan, override_names

SUMMARY = "insert the MUSE head into a CLIP4Clip or X-CLIP checkout"
DESCRIPTION = (
    "Without an option: show the unified diff of your own tree and change nothing. Lines are "
    "only inserted, each between two marker comments; examples/README.md lists them."
)
# Exit statuses of --check.
STATUS = {"applied": 0, "not applied": 1, "partly applied": 3}


def add_patch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `patch` to the commands."""
    parser = commands.add_parser("patch", help=SUMMARY, description=DESCRIPTION)
    parser.add_argument("host", choices=sorted(HOSTS), help="the code base")
    add_options(parser)
    parser.set_defaults(run=patch)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all arguments except the name of the code base."""
    parser.add_argument("path", help="folder of the checkout")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--write", action="store_true", help="insert the lines")
    actions.add_argument(
        "--reverse",
        action="store_true",
        help="remove the lines: restores the tree byte for byte; blocks that were edited are shown "
        "and kept",
    )
    actions.add_argument(
        "--check",
        action="store_true",
        help="report whether they are inserted: exit status 0 applied, 1 not applied, 3 partly "
        "applied (and where), 2 if the checkout cannot be patched",
    )
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="also write to files that have uncommitted changes",
    )
    names = parser.add_argument_group("names in a fork")
    names.add_argument("--main-file", metavar="FILE", help="the main script")
    for field in fields(Host):
        if field.name != "main_files":
            description = field.name.replace("_", " ")
            metavar = field.name.rpartition("_")[2].upper()
            option = f"--{field.name.replace('_', '-')}"
            names.add_argument(option, metavar=metavar, help=f"the {description}")


def patch(arguments: argparse.Namespace) -> int:
    """Show, write, reverse or check the patch; return the exit status."""
    names = {field.name: getattr(arguments, field.name, None) for field in fields(Host)}
    names.pop("main_files")
    host = override_names(HOSTS[arguments.host], main_file=arguments.main_file, **names)
    try:
        if arguments.reverse:
            return _write(make_reverse_plan(arguments.path, host), "removed from")
        plan = make_plan(arguments.path, host)
        if arguments.check:
            print(plan.state)
            if plan.state == "partly applied":
                print("\n".join(plan.mismatches()))
            return STATUS[plan.state]
        if arguments.write:
            if not arguments.allow_dirty:
                _check_clean(arguments.path, plan)
            return _write(plan, "inserted into")
        plan.contents()  # raises if the patch could not be written
        _show(plan)
    except PatchError as error:
        print(f"muse-adapter patch: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"muse-adapter patch: nothing was written: {error}", file=sys.stderr)
        return 2
    return 0


def main(host: str, arguments: list[str] | None = None) -> int:
    """Run the command for one code base, as the scripts in `examples/` do."""
    parser = argparse.ArgumentParser(description=f"{SUMMARY} ({host}). {DESCRIPTION}")
    add_options(parser)
    parser.set_defaults(host=host)
    return patch(parser.parse_args(arguments))


def _write(plan: Plan, done: str) -> int:
    contents = plan.contents()
    checkout.replace_files(contents)
    if not contents:
        print("nothing to do")
    for change in plan.changes:
        if change.source.path in contents:
            blocks = change.expected or change.found
            print(f"{done} {change.source.name}: {', '.join(block.name for block in blocks)}")
    return 0


def _check_clean(path: str, plan: Plan) -> None:
    # A file that contains blocks differs from its commit for that reason alone.
    sources = [change.source for change in plan.changes if not change.found]
    dirty = checkout.uncommitted(checkout.resolve_root(path), sources)
    if dirty:
        raise PatchError(
            f"{', '.join(dirty)} has uncommitted changes; commit them first, or add --allow-dirty: "
            "lines are only inserted, and --reverse removes only those"
        )


def _show(plan: Plan) -> None:
    diff = plan.diff()
    if not diff:
        print("nothing to do: already applied")
        return
    sys.stdout.flush()
    # As bytes: each file keeps its encoding and line endings, so that the output is a valid patch.
    sys.stdout.buffer.write(diff)
    sys.stdout.buffer.flush()
