"""Compiled kernels on disk, with checksums: damage is named, and the kernel is compiled again.

Numba loads what it finds: a flipped bit in machine code would end the process, or worse.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import warnings
import zlib
from collections.abc import Callable
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.errors import NumbaError
from numba.core.sigutils import normalize_signature

logger = logging.getLogger(__name__)


def compile_kernel(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a C function, or take it from the disk.

    Args:
        function: The function, in the subset of Python that numba compiles.
        signature: Its types.

    Returns:
        What `numba.cfunc` returns.
    """
    # As `numba.cfunc` does, but with a cache of our own.
    options = {"error_model": "numpy"}
    compiled: Any = CFunc(function, normalize_signature(signature), locals={}, options=options)
    try:
        compiled._cache = _KernelCache(function)
    except (OSError, RuntimeError) as error:  # no folder can be written
        _warn_uncached(str(error))
    compiled.compile()
    return compiled


class _KernelCache(FunctionCache):
    """Numba's cache of a function; it warns where numba would raise."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator, name = self._impl.locator, self._impl.filename_base
        # In place of those that numba makes, with the arguments that it gives them.
        self._cache_file = _CheckedFiles(self.cache_path, name, locator.get_source_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            kept = super().load_overload(sig, target_context)
            if kept is None:
                _announce()
            return kept
        except NumbaError:
            raise
        except Exception as error:  # whatever a damaged file makes of itself when it is unpickled
            name = self._py_func.__qualname__
            warnings.warn(
                f"the cache of the kernel {name} in {self.cache_path} is damaged "
                f"({type(error).__name__}: {error}), it is compiled again",
                stacklevel=2,
            )
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _warn_uncached(f"{self.cache_path}: {type(error).__name__}: {error}")


class _CheckedFiles(IndexDataCacheFile):
    """The files of a cache: each entry with its key and a checksum of its content."""

    def save(self, key: Any, data: Any) -> None:
        content = self._dump(data)
        super().save(key, (repr(key), zlib.crc32(content), content))

    def load(self, key: Any) -> Any:
        entry = super().load(key)
        if entry is None:
            return None
        # Two processes that write at the same time may exchange the files of two entries.
        known, crc, content = entry
        if known != repr(key):
            raise ValueError("it is of another kernel")
        if crc != zlib.crc32(content):
            raise ValueError("its checksum is wrong")
        return pickle.loads(content)


@functools.cache
def _announce() -> None:
    """Say once in a process that there is something to wait for."""
    logger.warning(
        "compiling the CPU kernels, once on this machine: about 15 s for training on two cores of "
        "an AMD EPYC, less for inference"
    )


@functools.cache
def _warn_uncached(reason: str) -> None:
    warnings.warn(
        f"compiled kernels cannot be kept on disk ({reason}): every process compiles them anew. "
        "Set NUMBA_CACHE_DIR to a folder that can be written",
        stacklevel=2,
    )
