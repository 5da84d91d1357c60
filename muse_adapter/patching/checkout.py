"""Files of the user's checkout: find, read and atomically replace them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
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
    try:
        resolved = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise PatchError(f"{name} cannot be read: {error}") from error
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


def uncommitted(root: Path, sources: Sequence[Source]) -> list[str]:
    """Return the names of the files that differ from the last commit of a git repository.

    Nothing that the checkout configures is run: `git status` would run its file monitor, filters
    and hooks. Git is only asked for the hashes of the committed files, which are compared here.
    """
    changed = []
    for source in sources:
        committed = _committed_hash(root, source.path.relative_to(root))
        # With autocrlf a file has other line endings than its commit.
        contents = (source.raw, source.raw.replace(b"\r\n", b"\n"))
        if committed is not None and committed not in map(partial(_blob_hash, committed), contents):
            changed.append(source.name)
    return changed


def _committed_hash(root: Path, path: Path) -> str | None:
    """Return the hash of a file in the last commit; None if there is no git, commit or file.

    Raises:
        PatchError: Git refuses the repository, or cannot read its last commit.
    """
    if shutil.which("git") is None:
        return None
    head = _git(root, "rev-parse", "--quiet", "--verify", "HEAD")
    if head.returncode == 1 or b"not a git repository" in head.stderr:
        return None
    entry = head if head.returncode else _git(root, "ls-tree", "-z", "HEAD", "--", path.as_posix())
    if entry.returncode:
        raise PatchError(
            f"git cannot tell whether {path} has uncommitted changes: "
            f"{entry.stderr.decode(errors='replace').strip()}; to patch it nevertheless, add "
            "--allow-dirty"
        )
    return entry.stdout.split(b"\t", 1)[0].split()[2].decode() if entry.stdout else None


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in the checkout, but no program that the checkout names."""
    command = ["git", "--no-pager", "--literal-pathspecs", "-c", "core.fsmonitor=false"]
    command += ["-c", "core.hooksPath=/dev/null", "-C", str(root), *arguments]
    # A partial clone would fetch missing objects, by programs that its configuration names.
    offline = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "GIT_OPTIONAL_LOCKS": "0"}
    return subprocess.run(
        command,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **offline, "LC_ALL": "C"},  # its messages in English
    )


def _blob_hash(like: str, content: bytes) -> str:
    """Return the hash of a file as git computes it, by the algorithm of the hash `like`."""
    algorithm = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content).hexdigest()


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
