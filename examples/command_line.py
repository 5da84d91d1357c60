"""How the commands of the examples run and end."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch


def exit_status(run: Callable[[], None]) -> int:
    """Run a command that trains.

    Returns:
        Its exit status: 0, 2 after an error, 130 after an interrupt; what happened is printed.
    """
    # Probabilities of a peaked attention fall below 1e-38, where a CPU computes a hundred times
    # slower: a run with attention as its mixer would take several times as long. Set before torch
    # starts its threads, which then do the same.
    torch.set_flush_denormal(True)
    try:
        run()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_flush_denormal(False)
    return 0
