"""The head against the same head with flash attention: training and inference, time and memory.

    python -m benchmarks.gpu.head --json FILE

In bfloat16 autocast. Nothing is timed before the head agreed with the `torch` backend on the same
grid.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.correctness import BOUNDS, MIN_SCALE, difference
from benchmarks.gpu.kernels import seconds_by_kernel
from benchmarks.gpu.part import Options, Row, peak_bytes, run_part, times
from muse_adapter import MultiScaleMamba
from muse_adapter.ops import use_backend


class Video(NamedTuple):
    """What a head is timed on.

    Attributes:
        batch: Videos.
        frames: Of each.
        side: Of the square grid of patches.
        target: How many times faster than attention the head is to train.
    """

    batch: int
    frames: int
    side: int
    target: float

    def __str__(self) -> str:
        return f"B={self.batch}, T={self.frames}, {self.side}x{self.side} patches"


# The longest at a smaller batch: attention takes a second for a training step of 4.
VIDEOS = [Video(16, 12, 7, 2.0), Video(16, 64, 7, 6.0), Video(4, 64, 14, 15.0)]
TINY = [Video(1, 1, 2, 1.0)]
CHECKED_FRAMES = 3


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Time every length."""
    for index, video in enumerate(TINY if options.tiny else VIDEOS):
        checked = video._replace(
            batch=min(2, video.batch), frames=min(CHECKED_FRAMES, video.frames)
        )
        if wrong := disagreement(checked, options):
            yield {"what": f"head, {checked}", "failed": f"{wrong}, so no time is given"}
        else:
            yield measure(video, options, profiled=index == 0)


def build(mixer: str, options: Options) -> MultiScaleMamba:
    """Build a head of the paper's size, or a tiny one, the same at every call."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"dim": 16, "depth": 1, "scales": (1.0,)} if options.tiny else {}
    return MultiScaleMamba(mixer=mixer, init="release", **size).to(options.device)


def draw(video: Video, head: MultiScaleMamba, options: Options) -> Tensor:
    """Make tokens, which want a gradient, the same at every call."""
    torch.manual_seed(1)
    shape = video.batch, video.frames, 1 + video.side**2, head.config.dim
    return torch.randn(shape, device=options.device, requires_grad=True)


def kernels(backend: str, options: Options) -> AbstractContextManager[object]:
    """Compute linear maps in bfloat16, scans on a backend, attention by the flash kernels."""
    context = ExitStack()
    context.enter_context(torch.autocast(options.device, torch.bfloat16))
    context.enter_context(use_backend(backend))
    context.enter_context(sdpa_kernel(SDPBackend.FLASH_ATTENTION))
    return context


def disagreement(video: Video, options: Options) -> str | None:
    """Compare the head on both backends; return what differs by how much."""
    head = build("bimamba", options).eval()
    tokens = draw(video, head, options)
    got, expected = (_results(head, tokens, name, options) for name in ("triton", "torch"))
    return difference(got, expected, BOUNDS["bfloat16"], min_scale=MIN_SCALE)


def _results(
    head: MultiScaleMamba, tokens: Tensor, backend: str, options: Options
) -> dict[str, Tensor]:
    """Return the embedding and all gradients."""
    wanted = {"tokens": tokens, **dict(head.named_parameters())}
    with kernels(backend, options):
        embedding = head(tokens)
    torch.manual_seed(2)
    loss = (embedding * torch.randn_like(embedding)).sum()
    gradients = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    named = zip(wanted, gradients, strict=True)
    return {"embedding": embedding.detach(), **{f"gradient of {k}": v for k, v in named}}


def measure(video: Video, options: Options, *, profiled: bool) -> Row:
    """Time a training step and inference of the head with each mixer."""
    row: Row = {"what": f"head, {video}", "target_times_faster": video.target}
    row |= {"seconds": {}, "spread_s": {}, "rounds": {}, "peak_bytes": {}}
    for mixer in ("bimamba", "attention"):
        try:
            _measure(mixer, video, options, row, profiled=profiled)
        except torch.cuda.OutOfMemoryError as error:
            row[f"{mixer}_out_of_memory"] = str(error).splitlines()[0]
        gc.collect()
        if not options.tiny:
            torch.cuda.empty_cache()
    for kind in ("training", "inference"):
        slow, fast = (row["seconds"].get(f"{mixer} {kind}") for mixer in ("attention", "bimamba"))
        if slow and fast:
            row[f"{kind}_times_faster"] = slow / fast
    return row


def _measure(mixer: str, video: Video, options: Options, row: Row, *, profiled: bool) -> None:
    head = build(mixer, options)
    tokens = draw(video, head, options)
    head.layers[0].register_forward_pre_hook(
        lambda _, given: row.__setitem__("tokens", given[0].shape[1])
    )

    def training() -> None:
        head.zero_grad(set_to_none=True)
        tokens.grad = None
        with kernels("triton", options):
            loss = head(tokens).sum()
        loss.backward()

    @torch.no_grad()
    def inference() -> None:
        with kernels("triton", options):
            head(tokens)

    for kind, run in (("training", training), ("inference", inference)):
        head.train(kind == "training")
        name = f"{mixer} {kind}"
        found = times({name: run}, options)
        row["seconds"] |= found["seconds"]
        row["spread_s"] |= found["spread_s"]
        row["rounds"][name] = found["rounds"]
        row["peak_bytes"][name] = peak_bytes(run, options)
        if profiled:
            row[f"{mixer}_{kind}_kernels_s"] = seconds_by_kernel(run, options.device)


if __name__ == "__main__":
    main()
