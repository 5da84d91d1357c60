"""The backend in plain torch keeps no state of every token, and asks for no value."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.recurrent import TORCH
from tests.support.scans import draw

pytestmark = pytest.mark.usefixtures("nan_memory")


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_torch_backend_keeps_no_state_of_every_token(reverse):
    """The largest tensor of forward and backward is a chunk's, not (batch, L, E, S)."""
    batch, channels, length, states = 1, 64, 4000, 16
    arguments = draw(batch, channels, length, states, torch.float32)
    u, delta, A, B, C, D, bias = (
        arguments[name].detach() for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")
    )
    rows = (u.transpose(1, 2), delta.transpose(1, 2), A)
    matrices = (B.transpose(1, 2)[:, :, None], C.transpose(1, 2)[:, :, None])
    inputs = ScanInputs(*rows, *matrices, D, bias, delta_softplus=True, reverse=reverse)
    every_state = batch * channels * length * states
    # Below the operator, into which the mode does not look.
    with Largest() as largest:
        saved = torch.empty(TORCH.saved_states_shape(batch, length, channels, states))
        y, _ = TORCH.scan_forward(inputs, saved)
        TORCH.scan_backward(inputs, saved, torch.ones_like(y), None)
    assert largest.elements < every_state / 4
    with Largest() as largest:
        torch.stack([A] * length)
    assert largest.elements >= every_state, "a tensor of every state would be seen"
