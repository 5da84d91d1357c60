"""The mamba_ssm backend with the package itself, where it loads."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops.mamba_ssm import MAMBA_SSM as backend
from muse_adapter.ops.reference import REFERENCE as reference
from tests.support.mamba_scans import agree, draw, outcome

if backend.unavailable() is not None:
    pytest.skip(f"backend mamba_ssm: {backend.unavailable()}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 15, 63, 257, 1000])
def test_the_package_agrees_with_the_reference(length, reverse):
    arguments = {k: v.detach().cuda().requires_grad_() for k, v in draw(length).items()}
    lengths = torch.tensor([length, length // 2], device="cuda")
    flags = {"delta_softplus": True, "reverse": reverse, "lengths": lengths}
    agree(outcome(backend, arguments, **flags), outcome(reference, arguments, **flags))
