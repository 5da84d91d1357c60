"""Which backend runs: argument, `use_backend`, environment, then automatic; said once."""

from __future__ import annotations

import logging

import torch

from muse_adapter import ops
from muse_adapter.ops import choice, selective_scan, use_backend
from muse_adapter.ops.choice import BACKENDS, ENVIRONMENT
from tests.support.scans import draw


def test_choice_of_the_backend(monkeypatch, caplog):
    arguments = {k: v.detach() for k, v in draw(1, 2, 3, 2, torch.float32).items()}
    called = []
    for name, backend in BACKENDS.items():
        original = backend.scan
        monkeypatch.setattr(
            backend, "scan", lambda inputs, _n=name, _f=original: called.append(_n) or _f(inputs)
        )
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    automatic = next(name for name, status in ops.backends("cpu").items() if status.available)
    selective_scan(**arguments)
    monkeypatch.setenv(ENVIRONMENT, "torch")
    choice._announced.clear()
    with caplog.at_level(logging.INFO, "muse_adapter"):
        selective_scan(**arguments)
        selective_scan(**arguments)
    assert caplog.text.count("backend torch (MUSE_ADAPTER_BACKEND)") == 1
    with use_backend("reference"):
        selective_scan(**arguments)
        selective_scan(**arguments, backend="torch")
    selective_scan(**arguments)
    assert called == [automatic, "torch", "torch", "reference", "torch", "torch"]


def test_backends_says_why_one_is_missing():
    assert ops.backends()["reference"] == (True, None)
    on_gpu = ops.backends("cuda")["numba"]
    assert not on_gpu.available and on_gpu.reason
