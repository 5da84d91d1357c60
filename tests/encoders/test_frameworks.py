"""VideoTextModel, and VideoEncoder in it, in accelerate, Lightning and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from muse_adapter import VideoEncoder, VideoTextModel
from tests.support.real_backbones import CLIP, hf
from tests.support.small_encoders import small_head

LEARNING_RATE = 0.1


pytestmark = pytest.mark.usefixtures("torch_scan")


def make_model(*, freeze: bool, **fields: Any) -> VideoTextModel:
    torch.manual_seed(0)
    clip = hf("CLIPModel", "CLIPConfig", **CLIP)()
    return VideoTextModel(VideoEncoder(clip, small_head(**fields), freeze=freeze), text=clip)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(6, 2, 3, 16, 16, generator=generator)
    ids = torch.randint(3, 50, (6, 8), generator=generator)
    mask = torch.tensor([[1, 1], [1, 0]] * 3)
    return DataLoader(TensorDataset(frames, ids, mask), batch_size=2)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)


def plain_loop(*, freeze: bool) -> dict[str, Tensor]:
    model = make_model(freeze=freeze).train()
    optimizer = optimizer_of(model)
    for batch in loader():
        optimizer.zero_grad()
        model(*batch).backward()
        optimizer.step()
    return model.state_dict()


def check_trained(model: nn.Module, *, freeze: bool) -> None:
    expected, start = plain_loop(freeze=freeze), make_model(freeze=freeze).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
        if freeze and name.startswith("encoder.backbone."):
            assert torch.equal(value, start[name]), f"{name} is frozen and changed"
    changed = [name for name in start if not torch.equal(expected[name], start[name])]
    assert any("head" in name for name in changed)
    assert freeze or any("vision_model" in name for name in changed)


freezes = pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])


@pytest.fixture
def accelerate() -> Iterator[Any]:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    yield accelerate
    # Its state is global to the process.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@freezes
def test_accelerate(freeze: bool, accelerate: Any, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = make_model(freeze=freeze)
    parts = accelerator.prepare(model, optimizer_of(model), loader())
    wrapped, optimizer, batches = parts
    wrapped.train()
    for batch in batches:
        optimizer.zero_grad()
        accelerator.backward(wrapped(*batch))
        optimizer.step()
    check_trained(accelerator.unwrap_model(wrapped), freeze=freeze)
    accelerator.save_state(str(tmp_path))  # safetensors rejects a tensor with two names
    with torch.no_grad():
        saved = model.encoder.head.layers[0].fc.weight.clone()
        model.encoder.head.layers[0].fc.weight.zero_()
    accelerator.load_state(str(tmp_path))
    torch.testing.assert_close(model.encoder.head.layers[0].fc.weight, saved, rtol=0, atol=0)


def test_accelerate_in_mixed_precision(accelerate: Any) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = make_model(freeze=True)
    seen: list[torch.dtype] = []
    model.text.visual_projection.register_forward_hook(lambda _m, _a, out: seen.append(out.dtype))
    wrapped = accelerator.prepare(model)
    loss = wrapped(*next(iter(loader())))
    accelerator.backward(loss)
    assert set(seen) == {torch.bfloat16} and loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.encoder.head.parameters())


@freezes
def test_lightning(freeze: bool, tmp_path: Path) -> None:
    """With validation between the steps, after which Lightning resets all modes."""
    lightning = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning")
    modes: list[bool] = []

    class Retrieval(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model(freeze=freeze)

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            assert self.model.encoder.head.training
            modes.append(self.model.encoder.backbone.training)
            return self.model(*batch)

        def validation_step(self, batch: list[Tensor], _index: int) -> None:
            assert not self.model.encoder.head.training
            frames, ids, mask = batch
            model = self.model
            model.similarity(model.encode_text(ids), model.encode_video(frames, mask))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        val_check_interval=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    module = Retrieval()
    trainer.fit(module.train(), loader(), loader())
    assert modes == [not freeze] * 3
    check_trained(module.model, freeze=freeze)


@pytest.mark.slow
def test_whole_model_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    model, (batch, *_) = make_model(freeze=False, scales=(1.0,)), list(loader())
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        loss = run(*batch)
        loss.backward()
        results.append({"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters()}})
    torch._dynamo.reset()
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, msg=name)
