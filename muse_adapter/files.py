"""Atomic writing of files, also by several threads, processes and machines at once."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

# Seconds after which a temporary file belongs to no writer, whoever made it: a writer writes
# without a pause.
ABANDONED = 24 * 3600

# What a file system answers that has no way to bring the names in a folder to the disk.
_NO_SYNC = errno.EINVAL, errno.EBADF, errno.ENOTSUP

_PART = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.part")
_PART_OF_FILE = re.compile(r"\..+" + _PART.pattern)
_own_parts: set[str] = set()  # names of the temporary files that this process writes now


def write_whole(contents: Mapping[Path, bytes], *, keep_existing: bool = False) -> None:
    """Write files atomically: after a crash, each is complete or as it was before.

    Every file is first written under a temporary name in its own folder; they are renamed, in the
    given order, once all of them are written, and each name is brought to the disk before the next:
    when this returns, a power cut loses nothing. The names are unique, so that others may write the
    same files at the same time: the last rename wins. Temporary files of writers that were killed
    are removed.

    Args:
        contents: Content of each file.
        keep_existing: Leave files that exist as they are: of several writers at the same time, the
            first wins. Existing files are replaced otherwise.

    Raises:
        OSError: A file cannot be written. No file was changed, unless a rename failed, or the disk
            behind the renames.
    """
    own = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    parts = {path: path.with_name(f".{path.name}.{own}.part") for path in contents}
    _own_parts.update(part.name for part in parts.values())
    try:
        for path, part in parts.items():
            _remove_leftovers(path)
            with part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            (_create if keep_existing else os.replace)(part, path)
            sync_folder(path.parent)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
            _own_parts.discard(part.name)


def _create(part: Path, path: Path) -> None:
    """Give a temporary file its name, unless there is a file of this name."""
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:
        # The file system may have no hard links. Without them, a file that another writer creates
        # between these two lines is replaced.
        if not path.exists():
            os.replace(part, path)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: after new files, renames, deletions.

    This is done on POSIX systems; others bring names to the disk by themselves, some time later,
    and so does a POSIX system where the folder may be written but not read.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def is_part(name: str) -> bool:
    """Return whether a file has the name of a temporary file of `write_whole`."""
    return _PART_OF_FILE.fullmatch(name) is not None


@contextlib.contextmanager
def write_errors(what: str, folder: Path) -> Iterator[None]:
    """Inside the `with` block an `OSError` says what was being written, and where."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {what} to {str(folder)!r}: {error}") from error


def is_being_written(path: Path) -> bool:
    """Return whether `write_whole` writes a file, or one whose name begins like its name."""
    for part in _parts_of(path):
        with contextlib.suppress(FileNotFoundError):  # it got its name meanwhile
            if part.name in _own_parts or not _abandoned(part):
                return True
    return False


def _parts_of(path: Path) -> Iterator[Path]:
    return path.parent.glob(f".{glob.escape(path.name)}.*.part")


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of a file have left."""
    for part in _parts_of(path):
        with contextlib.suppress(OSError):  # another writer was faster, or it is another user's
            if part.name not in _own_parts and _abandoned(part):
                part.unlink()


def _abandoned(part: Path) -> bool:
    """Return whether the writer of a temporary file is gone: surely here, by its age elsewhere."""
    writer = _PART.search(part.name)
    if writer is not None and writer["machine"] == _machine():
        process = int(writer["process"])
        if process == os.getpid() or not is_running(process):
            return True
    return time.time() - part.stat().st_mtime > ABANDONED


def is_running(process: int) -> bool:
    """Return whether a process of this machine runs; True where that cannot be told."""
    if os.name != "posix":  # elsewhere signal 0 is not harmless
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _machine() -> str:
    """Return what tells this machine from others, as long as it runs.

    Containers on one machine see other processes than each other.
    """
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux has them
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(os.readlink("/proc/self/ns/pid"))
    return f"{zlib.crc32(' '.join(known).encode()):08x}"
