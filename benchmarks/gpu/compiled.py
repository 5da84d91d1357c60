"""The head by torch.compile in one graph, and replayed as a CUDA graph: results and times.

    python -m benchmarks.gpu.compiled --json FILE

In bfloat16 autocast, on a batch of the paper's videos and on a single one. Nothing is timed before
it agreed with the head run eagerly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.correctness import BOUNDS, MIN_SCALE, difference
from benchmarks.gpu.head import TINY, VIDEOS, Video, build, draw, kernels
from benchmarks.gpu.part import Options, Row, run_part, times
from muse_adapter import MultiScaleMamba


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Replay, then compile for inference and for training."""
    video = (TINY if options.tiny else VIDEOS)[0]
    for case in dict.fromkeys((video, video._replace(batch=1))):
        if not options.tiny:
            yield replayed(case, options)
    yield compiled(video, options, training=False)
    yield compiled(video, options, training=True)


def replayed(video: Video, options: Options) -> Row:
    """Capture inference in a CUDA graph."""
    head = build("bimamba", options).eval()
    tokens = draw(video, head, options).detach()

    @torch.no_grad()
    def eager() -> Tensor:
        with kernels("triton", options):
            return head(tokens)

    expected = eager()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = eager()
    captured.zero_()
    graph.replay()
    row: Row = {"what": f"inference through a CUDA graph, {video}"}
    row["same_bits"] = torch.equal(captured, expected)
    if wrong := difference({"embedding": captured}, {"embedding": expected}, BOUNDS["bfloat16"]):
        return row | {"failed": f"{wrong}, so no time is given"}
    row |= times({"eager": eager, "replayed": graph.replay}, options)
    return row | {"times_faster": row["seconds"]["eager"] / row["seconds"]["replayed"]}


def compiled(video: Video, options: Options, *, training: bool) -> Row:
    """Compile the head as one graph, on a CPU without generating code."""
    head = build("bimamba", options).eval()  # in training without dropout, which would differ
    tokens = draw(video, head, options)
    backend = "aot_eager" if options.tiny else "inductor"
    fast = torch.compile(head, fullgraph=True, backend=backend)
    run = _training if training else _inference
    row: Row = {"what": f"{'training step' if training else 'inference'} by torch.compile, {video}"}
    begin = time.perf_counter()
    got = run(fast, head, tokens, options)
    row["compilation_s"] = time.perf_counter() - begin
    expected = run(head, head, tokens, options)
    if wrong := difference(got, expected, BOUNDS["bfloat16"], min_scale=MIN_SCALE):
        return row | {"failed": f"{wrong}, so no time is given"}
    steps: dict[str, Callable[[], Any]] = {
        "eager": lambda: run(head, head, tokens, options),
        "compiled": lambda: run(fast, head, tokens, options),
    }
    row |= times(steps, options)
    return row | {"times_faster": row["seconds"]["eager"] / row["seconds"]["compiled"]}


@torch.no_grad()
def _inference(
    run: Callable[[Tensor], Tensor], head: MultiScaleMamba, tokens: Tensor, options: Options
) -> dict[str, Tensor]:
    with kernels("triton", options):
        return {"embedding": run(tokens)}


def _training(
    run: Callable[[Tensor], Tensor], head: MultiScaleMamba, tokens: Tensor, options: Options
) -> dict[str, Tensor]:
    wanted = {"tokens": tokens, **dict(head.named_parameters())}
    with kernels("triton", options):
        embedding = run(tokens)
    loss = (embedding * embedding.detach().roll(1, 1)).sum()
    gradients = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    named = zip(wanted, gradients, strict=True)
    return {"embedding": embedding.detach(), **{f"gradient of {k}": v for k, v in named}}


if __name__ == "__main__":
    main()
