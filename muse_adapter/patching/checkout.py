"""Files of the user's checkout: find, read and atomically replace them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.source import Source, decode


def resolve_root(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkout with links resolved.

    Raises:
        PatchError: It is not a folder.
    """
    root = Path(path)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise PatchError(f"expected the folder of a checkout, but {str(path)!r} {problem}")
    return root.resolve()


def read(root: Path, name: str, option: str) -> Source:
    """Read a file of the checkout.

    Args:
        root: The folder of the checkout.
        name: Path of the file, relative to `root`.
        option: Command-line option that names another file, for messages.

    Raises:
        PatchError: The file is missing, is a link out of the checkout, or cannot be decoded.
    """
    path = root / name
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise PatchError(
            f"{name} is outside of the checkout, at {resolved}; patch that tree, or copy the file "
            "into the checkout"
        )
    if not resolved.is_file():
        raise PatchError(f"{name} is not in {root}; name the file with {option}")
    return decode(name, resolved, resolved.read_bytes())


def find_existing(root: Path, names: Sequence[str], option: str) -> str:
    """Return the only one of several files that exists.

    Raises:
        PatchError: None or several of them exist.
    """
    existing = [name for name in names if (root / name).exists()]
    if len(existing) == 1:
        return existing[0]
    found = "found all of them" if existing else "found none"
    raise PatchError(
        f"expected {' or '.join(names)} in {root}, {found}; name the file with {option}"
    )


def uncommitted(root: Path, names: Sequence[str]) -> list[str]:
    """Return those of the files that git tracks and that differ from the last commit."""
    if shutil.which("git") is None:
        return []
    done = subprocess.run(
        ["git", "-C", str(root), "status", "--porcelain", "-z", "--", *names],
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:  # not a repository
        return []
    entries = [entry for entry in done.stdout.decode(errors="replace").split("\0") if entry]
    changed = [entry[3:] for entry in entries if not entry.startswith("??")]
    return [name for name in names if any(entry.endswith(name) for entry in changed)]


def replace_files(contents: Mapping[Path, tuple[bytes, bytes]]) -> None:
    """Replace the contents of files: all of them, or none.

    New contents are first written to temporary files in the same folders, which are then renamed. A
    failure or an interrupt in between restores the files already replaced. File modes are kept.

    Args:
        contents: For each path its present and its new content.

    Raises:
        PatchError: A file or folder is read-only, or a file has changed in the meantime.
        OSError: Writing failed.
    """
    for path in contents:
        for target in (path, path.parent):
            # Check the mode too: root may write anywhere, and renaming replaces read-only files.
            if not (target.stat().st_mode & stat.S_IWUSR and os.access(target, os.W_OK)):
                raise PatchError(f"{target} is read-only; nothing was written (chmod u+w it first)")
    parts: dict[Path, Path] = {}
    renamed: list[Path] = []
    try:
        for path, (_, new) in contents.items():
            parts[path] = _write_temporary(path, new)
        for path, (old, _) in contents.items():
            if path.read_bytes() != old:
                raise PatchError(f"{path} has changed in the meantime; nothing was written")
        try:
            for path, part in parts.items():
                renamed.append(path)
                os.replace(part, path)
        except BaseException:
            for path in renamed:
                if path.read_bytes() != contents[path][0]:
                    os.replace(_write_temporary(path, contents[path][0]), path)
            raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write_temporary(path: Path, content: bytes) -> Path:
    """Write a temporary file with the mode of `path` in the same folder."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        status = path.stat()
        with contextlib.suppress(OSError, AttributeError):  # only root may, and only on POSIX
            os.chown(part, status.st_uid, status.st_gid)
        part.chmod(stat.S_IMODE(status.st_mode))
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part
