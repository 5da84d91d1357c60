"""Triton's interpreter, without the work that it repeats.

At each call of a function from inside a kernel, it replaces the whole language by interpreted
functions. The launch has done so already: this is half of its time, and changes nothing.
"""

from __future__ import annotations

import functools
import types
from typing import Any


def patch_language_once() -> None:
    """Let the interpreter replace the language once a launch for each module of kernels."""
    from triton.runtime import interpreter

    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[str] = set()

    @functools.wraps(launch)
    def launch_anew(self: Any, *arguments: Any, **options: Any) -> Any:
        patched.clear()
        return launch(self, *arguments, **options)

    @functools.wraps(patch)
    def patch_once(function: Any) -> Any:
        if function.__module__ in patched:
            return types.SimpleNamespace(restore=lambda: None)
        patched.add(function.__module__)
        return patch(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_anew, patch_once
