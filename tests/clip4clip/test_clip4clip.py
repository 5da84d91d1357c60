"""What a patched host computes: on look-alikes and, where variables name them, on real checkouts.

Each test patches a checkout, imports it from its folder and drives it as its main script does.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter import MultiScaleMamba
from muse_adapter import __main__ as cli
from muse_adapter.clip4clip import HostHead, add_arguments, attach, fused_frames, regroup
from tests.support.hosts import DIM, FRAMES, IDS, KINDS, Session, imported, make_batch, make_host

SMALL = ["--muse", "--muse_depth", "2", "--muse_d_state", "4", "--muse_scales", "0.5", "1"]


def same(first: Any, second: Any) -> bool:
    """Equal to the last digit, through containers."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(params=KINDS, ids=IDS)
def patched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    """A patched checkout of each kind."""
    host = make_host(tmp_path, *request.param)
    assert cli.main(["patch", host.kind, str(host.path), "--write"]) == 0
    with imported(host) as session:
        yield session


def run(session: Session, *options: str, steps: int = 3) -> dict[str, Any]:
    """Trains from the start and reports everything that may be compared."""
    args = session.args(*options)
    model = session.build(args)
    optimizer = session.optimizer(args, model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [
        {
            **{k: v for k, v in g.items() if k != "params"},
            "names": [names[id(p)] for p in g["params"]],
        }
        for g in optimizer.param_groups
    ]
    losses = session.train(model, optimizer, [make_batch(seed) for seed in range(steps)])
    return {
        "losses": losses,
        "groups": groups,
        "similarity": session.similarity(model, make_batch(9)),
        "state": dict(model.state_dict()),
        "random": torch.random.get_rng_state(),
    }


@pytest.mark.parametrize(("kind", "real"), KINDS, ids=IDS)
def test_switched_off_is_the_unpatched_host(kind: str, real: bool, tmp_path: Path) -> None:
    host = make_host(tmp_path, kind, real)
    with imported(host) as session:
        before = run(session)
    assert cli.main(["patch", kind, str(host.path), "--write"]) == 0
    with imported(host) as session:
        after = run(session)
        on = run(session, *SMALL)
    for what, value in before.items():
        assert same(value, after[what]), what
    # Switched on: the first loss, CLIP's groups and the host's random numbers are the same.
    assert on["losses"][0] == before["losses"][0]
    assert on["losses"][1:] != before["losses"][1:]
    assert same(on["groups"][: len(before["groups"])], before["groups"])
    assert torch.equal(on["random"], before["random"])


def test_loss_falls_and_everything_is_trained(patched: Session) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    head = model.muse
    assert head.config.dim == DIM
    assert head.config.depth == 2
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    start = copy.deepcopy(head.state_dict())
    losses = patched.train(model, patched.optimizer(args, model, 20), [make_batch(0)] * 12)
    assert losses[-1] < losses[0]
    assert not [
        name for name, value in head.state_dict().items() if torch.equal(value, start[name])
    ]


def test_optimizer_groups_and_rates(patched: Session, caplog: pytest.LogCaptureFixture) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    with caplog.at_level(logging.INFO, logger="muse_adapter"):
        optimizer = patched.optimizer(args, model, steps=20)
    logged = [r.getMessage() for r in caplog.records if "optimizer group" in r.getMessage()]
    assert len(logged) == len(optimizer.param_groups)
    assert any("muse.decay" in line and "lr 0.01," in line for line in logged)

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in decays, f"{name} is in two groups"
            decays[name] = group["weight_decay"]
            if name.startswith("muse."):
                assert group["lr"] == pytest.approx(10 * args.lr)
                assert group["name"] in ("muse.decay", "muse.no_decay")
    modules = dict(model.named_modules())
    for name in (name for name in decays if name.startswith("muse.")):
        owner, _, leaf = name.rpartition(".")
        free = leaf in ("bias", "A_log", "A_b_log", "D", "D_b")
        free = free or isinstance(modules[owner], nn.LayerNorm)
        assert decays[name] == (0.0 if free else 0.2), name

    # Asked right behind each step: the real hosts know no rate where there is no gradient any more.
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda *_: rates.append(max(optimizer.get_lr())))
    patched.train(model, optimizer, [make_batch(0), make_batch(1)])
    # With 1 and 2 of 20 steps behind them, 2 of which warm up: half way, and on the cosine.
    head_rate = 10 * args.lr
    cosine = 0.5 * (1 + math.cos(0.1 * math.pi))
    assert rates == pytest.approx([0.5 * head_rate, cosine * head_rate])


class Counted:
    """Counts calls of the head."""

    def __init__(self, head: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.videos: list[int] = []
        real = head.forward_features

        def forward_features(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.videos.append(len(tokens))
            return real(tokens, *args, **kwargs)

        monkeypatch.setattr(head, "forward_features", forward_features)


def test_once_per_video(patched: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    counted = Counted(model.muse, monkeypatch)
    patched.train(model, patched.optimizer(args, model), [make_batch(0)])
    assert counted.videos == [3]

    model.eval()
    with torch.no_grad():
        batches = [make_batch(seed) for seed in range(3)]
        features = [model.get_sequence_visual_output(b[0], b[2], b[1], *b[3:]) for b in batches]
        assert counted.videos == [3] * 4
        for text, _ in features:
            for (_, frames), batch in zip(features, batches, strict=True):
                words = text if isinstance(text, tuple) else (text,)
                model.get_similarity_logits(*words, frames, batch[1], batch[4], loose_type=True)
    assert counted.videos == [3] * 4, "text against video costs no further runs"

    # The evaluation with several sentences a video picks videos and calls this directly.
    video, mask = batches[0][3][[0, 2]], batches[0][4][[0, 2]]
    with torch.no_grad():
        frames = model.get_visual_output(video, mask)
    assert counted.videos[-1] == 2
    torch.testing.assert_close(frames, features[0][1][[0, 2]])


def test_similarity_sees_the_fused_frames_alone(
    patched: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = patched.build(patched.args(*SMALL))
    batch = make_batch(0, frames=(3, 3, 3))
    assert len(patched.similarity(model, batch)[0].unique()) == 3, "three videos, three columns"

    def similarity(fused: Tensor) -> Tensor:
        monkeypatch.setattr(model.muse, "forward_features", lambda *_: fused.repeat(3, 1, 1))
        return patched.similarity(model, batch)

    fused = torch.randn(1, FRAMES, DIM)
    first = similarity(fused)
    torch.testing.assert_close(first, first[:, :1].expand(-1, 3))
    # X-CLIP's frame contrasts ignore the mask: they alone see what stands at the last frame.
    fused[:, -1] += 1
    seen = not torch.allclose(similarity(fused), first)
    assert seen == (patched.host.kind == "xclip")


def test_a_thousand_videos_in_batches_of_16_take_63_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(tmp_path, "clip4clip")
    assert cli.main(["patch", host.kind, str(host.path), "--write"]) == 0
    with imported(host) as session, torch.no_grad():
        model = session.build(session.args(*SMALL, "--muse_depth", "1", "--muse_scales", "0.5"))
        model.eval()
        counted = Counted(model.muse, monkeypatch)
        texts, videos = [], []
        for start in range(0, 1000, 16):
            size = min(16, 1000 - start)
            ids, mask, types, video, video_mask = make_batch(start, size, (FRAMES,) * size)
            text, frames = model.get_sequence_visual_output(ids, types, mask, video, video_mask)
            texts.append((text, mask))
            videos.append((frames, video_mask))
        rows = [
            torch.cat([model.get_similarity_logits(t, f, m, v)[0] for f, v in videos], dim=1)
            for t, m in texts
        ]
    assert torch.cat(rows).shape == (1000, 1000)
    assert len(rows) * len(videos) == 3969
    assert len(counted.videos) == 63


def train_some(session: Session, *options: str) -> tuple[Any, Any, Any]:
    args = session.args(*SMALL, *options)
    model = session.build(args)
    optimizer = session.optimizer(args, model)
    session.train(model, optimizer, [make_batch(seed) for seed in range(3)])
    return args, model, optimizer


def on_disk(state: Any, tmp_path: Path) -> Any:
    torch.save(state, tmp_path / "state.bin")
    return torch.load(tmp_path / "state.bin", weights_only=True)


def test_a_checkpoint_under_another_seed(patched: Session, tmp_path: Path) -> None:
    args, model, _ = train_some(patched)
    other = patched.load(args, on_disk(model.state_dict(), tmp_path), seed=5)
    expected = patched.similarity(model, make_batch(9))
    assert torch.equal(patched.similarity(other, make_batch(9)), expected)


def test_a_resumed_run_is_the_uninterrupted_one(patched: Session, tmp_path: Path) -> None:
    args, model, optimizer = train_some(patched)
    assert args.muse_dropout > 0
    saved = on_disk({"m": model.state_dict(), "o": optimizer.state_dict()}, tmp_path)
    later = [make_batch(seed) for seed in (3, 4, 5)]
    losses = patched.train(model, optimizer, later)

    resumed = patched.load(args, saved["m"], seed=0)
    again = patched.optimizer(args, resumed)
    again.load_state_dict(saved["o"])
    assert patched.train(resumed, again, later) == losses


def test_an_unpatched_checkpoint_starts_as_the_baseline(patched: Session, tmp_path: Path) -> None:
    args = patched.args()
    model = patched.build(args)
    patched.train(model, patched.optimizer(args, model), [make_batch(0)] * 2)
    with_head = patched.load(patched.args(*SMALL), on_disk(model.state_dict(), tmp_path))
    expected = patched.similarity(model, make_batch(9))
    assert torch.equal(patched.similarity(with_head, make_batch(9)), expected)


def dropped(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return type(state)((name, value) for name, value in state.items() if part not in name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--muse_depth", "3"], r"muse\.layers\.2\.norm\.weight is missing"),
        (["--muse_d_state", "8"], r"muse\.layers\.0\.mixer\.A_log must have shape \(64, 8\), got"),
        (["--muse_scales", "1"], r"--muse_scales was \[0\.5, 1\.0\], is \[1\.0\]"),
        (["--muse_aggregation", "frame_wise"], "--muse_aggregation was 'scale_wise', is 'frame_"),
        ([], r"\(1 problems\):\n  muse\.layers\.1\.fc\.bias is missing"),
    ],
    ids=["depth", "state", "scales", "order alone", "partial"],
)
def test_another_head_in_a_checkpoint_raises(
    patched: Session, options: list[str], message: str, tmp_path: Path
) -> None:
    _, model, _ = train_some(patched)
    state = on_disk(model.state_dict(), tmp_path)
    if not options:
        del state["muse.layers.1.fc.bias"]
    with pytest.raises(ValueError, match=message):
        patched.load(patched.args(*SMALL, *options), state)


def test_without_metadata_shapes_still_count(patched: Session) -> None:
    _, model, _ = train_some(patched)
    plain = dict(model.state_dict())
    args = patched.args(*SMALL)
    assert same(dict(patched.load(args, dict(plain)).state_dict()), plain)
    with pytest.raises(ValueError, match=r"muse\.pyramid\.stages\.1\.0\.weight is missing"):
        patched.load(args, dropped(plain, "muse.pyramid"))


def test_a_checkpoint_with_a_head_needs_the_head(patched: Session) -> None:
    _, model, _ = train_some(patched)
    with pytest.raises(ValueError, match=r"holds a MUSE head .* but --muse is not given"):
        patched.load(patched.args(), model.state_dict())


def test_the_head_can_be_taken_along(patched: Session, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="saving heads needs safetensors")
    _, model, _ = train_some(patched)
    model.muse.save_pretrained(tmp_path / "head")
    head = MultiScaleMamba.from_pretrained(tmp_path / "head")
    assert same(dict(head.state_dict()), dict(model.muse.state_dict()))


def test_padding_and_missing_videos(patched: Session) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    batch = make_batch(0, frames=(4, 0, 1))
    losses = patched.train(model, patched.optimizer(args, model), [batch] * 4)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.isfinite(patched.similarity(model, make_batch(1, frames=(0, 0, 2)))).all()


def test_the_published_command_line(patched: Session) -> None:
    switch = run(patched, *SMALL)
    alias = run(patched, "--sim_header", "MUSE", *SMALL[1:])
    for what, value in switch.items():
        assert same(value, alias[what]), what


def test_weights_drawn_anew_by_the_host_are_found(patched: Session) -> None:
    model = patched.build(patched.args(*SMALL))
    model.apply(model.init_weights)
    with pytest.raises(RuntimeError, match=r"after the last self\.apply\(self\.init_weights\)"):
        patched.similarity(model, make_batch())


def test_frozen_pyramid_and_checkpointing(patched: Session) -> None:
    options = ("--muse_freeze_pyramid", "--muse_grad_checkpointing", "--muse_init", "release")
    args = patched.args(*SMALL, *options)
    model = patched.build(args)
    start = copy.deepcopy(model.muse.pyramid.state_dict())
    patched.train(model, patched.optimizer(args, model), [make_batch(0)] * 3)
    assert same(dict(model.muse.pyramid.state_dict()), dict(start))
    assert model.muse.grad_checkpointing


# What needs no host at all.


class Stub(nn.Module):
    """A host with a CLIP that gives what a test wants."""

    def __init__(self, answer: Any = None, dim: int = 16, tokens: int = 5) -> None:
        super().__init__()
        self.clip = nn.Module()
        self.clip.visual = nn.Module()
        self.clip.visual.proj = nn.Parameter(torch.zeros(24, dim))
        self.clip.visual.positional_embedding = nn.Parameter(torch.zeros(tokens, 24))
        self.clip.encode_image = lambda video, return_hidden, video_frame: answer


def settings(*given: str, **more: Any) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sim_header", choices=["meanP"], default="meanP")
    add_arguments(parser)
    args = parser.parse_args(given)
    vars(args).update(more)
    return args


def test_defaults_are_the_papers() -> None:
    args = settings("--muse")
    model = Stub()
    attach(model, args)
    assert model.muse.config == MultiScaleMamba(dim=16).config
    assert args.muse_lr_scale == 10


def test_arguments_of_another_host() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)  # no --sim_header there
    assert not parser.parse_args([]).muse
    model = Stub()
    attach(model, SimpleNamespace())  # a main script without our arguments
    assert model.muse is None


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        (["--sim_header", "MUSE"], {"loose_type": False}, "add --loose_type"),
        (["--muse", "--muse_depth", "0"], {}, "depth must be at least 1"),
        (["--muse", "--muse_scales", "3"], {}, "unknown scales"),
    ],
    ids=["tight", "depth", "scales"],
)
def test_attach_refuses(given: list[str], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(Stub(), settings(*given, **more))


def test_shuffled_frames_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    attach(Stub(), settings("--muse", train_frame_order=2))
    assert "train_frame_order 2 shuffles the frames" in caplog.text


def small(answer: Any, **fields: Any) -> Any:
    model = Stub(answer)
    attach(model, settings("--muse", "--muse_depth", "1"))
    model.eval()
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tokens_of_any_type_become_float32(dtype: torch.dtype) -> None:
    tokens = torch.randn(2 * FRAMES, 5, 16).to(dtype)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    frames = fused_frames(small((tokens[:, 0], tokens)), torch.empty(0), mask, FRAMES)
    assert frames.dtype == torch.float32
    assert frames.is_contiguous()
    # An identity start: CLIP's own features, at masked frames too.
    assert torch.equal(frames, tokens[:, 0].float().view(2, FRAMES, 16))


@pytest.mark.parametrize("as_list", [False, True], ids=["pair", "alone"])
def test_tokens_alone_are_taken(as_list: bool) -> None:
    tokens = torch.randn(FRAMES, 5, 16)
    answer = tokens if as_list else (tokens[:, 0], tokens)
    frames = fused_frames(small(answer), torch.empty(0), torch.ones(1, FRAMES), FRAMES)
    assert torch.equal(frames[0], tokens[:, 0])


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(FRAMES, 16), r"a tensor \(4, 16\)"),
        ((torch.zeros(FRAMES, 16), torch.zeros(FRAMES, 4, 16)), r"2 values .*\(4, 4, 16\)"),
        (torch.zeros(FRAMES, 5, 24), r"\(4, 5, 24\)"),
        (torch.zeros(FRAMES - 1, 5, 16), r"\(3, 5, 16\)"),
        ((1, 2, 3), "3 values"),
        (None, "NoneType"),
    ],
    ids=["features only", "a token short", "width", "frames", "three values", "nothing"],
)
def test_other_answers_are_refused(answer: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"all projected tokens \(4, 5, 16\).* got .*{got}"):
        fused_frames(small(answer), torch.empty(0), torch.ones(1, FRAMES), FRAMES)


def test_an_empty_video_is_marked_and_left_alone() -> None:
    tokens = torch.randn(2 * FRAMES, 5, 16, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    model = small((tokens[:, 0], tokens))
    model.train()
    frames = fused_frames(model, torch.empty(0), mask, FRAMES)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    frames.sum().backward()
    gradient = tokens.grad.view(2, FRAMES, -1)
    assert not gradient[1].any(), "nothing is learnt from a video that is not there"
    assert gradient[0, :2].any()
    assert not gradient[0, 2:].any()


def test_regroup_without_a_head_gives_the_same_list() -> None:
    model = Stub()
    attach(model, settings())
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    assert regroup(groups, model, settings()) is groups


def test_regroup_by_identity() -> None:
    model = Stub()
    attach(model, settings("--muse", "--muse_lr_scale", "3"))
    inside = [p for p in model.muse.parameters()]
    clip = {"params": list(model.clip.parameters()), "lr": 1e-7, "weight_decay": 0.3}
    mixed = {"params": [model.clip.visual.proj, *inside[:5]], "weight_decay": 0.1, "extra": "kept"}
    groups = [clip, mixed, {"params": inside[5:], "weight_decay": 0.0}]
    wrapped = SimpleNamespace(module=model)
    result = regroup(groups, wrapped, SimpleNamespace(lr=1e-2, muse_lr_scale=3.0))
    assert result[0] is clip
    assert result[1]["extra"] == "kept"
    assert [id(p) for p in result[1]["params"]] == [id(model.clip.visual.proj)]
    assert result[2]["params"] == []
    assert len(mixed["params"]) == 6, "the host's own groups are not changed"
    assert [g["name"] for g in result[3:]] == ["muse.decay", "muse.no_decay"]
    assert {g["lr"] for g in result[3:]} == {1e-2 * 3.0}
    assert [g["weight_decay"] for g in result[3:]] == [0.1, 0.0]
    assert {id(p) for g in result[3:] for p in g["params"]} == {id(p) for p in inside}


def test_dropout_draws_from_its_own_stream() -> None:
    tokens = torch.randn(FRAMES, 5, 16)
    model = small((tokens[:, 0], tokens))
    nn.init.normal_(model.muse.layers[0].fc.weight)
    nn.init.normal_(model.muse.layers[0].fc.bias)
    model.muse.layers[0].dropout.p = 0.5
    model.train()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    outputs = [fused_frames(model, torch.empty(0), torch.ones(1, FRAMES), FRAMES) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(*outputs), "each step drops others"
    model.muse.steps = 0
    again = fused_frames(model, torch.empty(0), torch.ones(1, FRAMES), FRAMES)
    assert torch.equal(again, outputs[0])


def test_names_survive_the_hosts_loader() -> None:
    names = dict(HostHead(dim=16).named_parameters())
    odd = [name for name in names if any(part in name for part in ("gamma", "beta", "clip."))]
    assert not odd, "the hosts rename the first two and take the third for CLIP"
