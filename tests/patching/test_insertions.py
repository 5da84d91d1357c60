"""Insertion points: which lines are inserted and where, and checkouts that are not supported."""

from __future__ import annotations

import re

import pytest

from muse_adapter.patching import HOSTS, PatchError, make_plan
from tests.support.hosts import Host, edit, patch


def inserted_lines(text: str) -> list[str]:
    """Return the lines between markers."""
    inside = re.findall(r"# >>> muse-adapter \S+ \S+\n(.*?)\n *# <<< muse-adapter", text, re.S)
    return [line.strip() for line in inside]


def test_inserted_lines_and_their_order(replica: Host) -> None:
    patch(replica, "--write")
    model = replica.model_file.read_text()
    assert inserted_lines(model) == [
        "import muse_adapter.clip4clip",
        "muse_adapter.clip4clip.attach(self, self.task_config)",
        "if self.muse is not None: return muse_adapter.clip4clip.fused_frames("
        "self, video, video_mask, video_frame)",
    ]
    main = replica.main_file.read_text()
    assert inserted_lines(main) == [
        "import muse_adapter.clip4clip",
        "muse_adapter.clip4clip.add_arguments(parser)",
        "groups = muse_adapter.clip4clip.regroup(groups, model, args)",
    ]
    order = [
        "self.apply(self.init_weights)",
        "attach(self",
        "def get_visual_output",
        "fused_frames(self",
        "self.clip.encode_image(",
    ]
    assert sorted(order, key=model.index) == order
    order = ["add_arguments(", "parse_args(", "regroup(", "optimizer = BertAdam("]
    assert sorted(order, key=main.index) == order


def test_insertion_after_a_last_line_without_newline(replica: Host) -> None:
    text = replica.model_file.read_text()
    start = text.index("    def __init__")
    end = text.index("    def forward")
    moved = text[:start] + text[end:] + "\n" + text[start:end].rstrip()
    replica.model_file.write_text(moved)
    assert moved.endswith("self.apply(self.init_weights)")
    assert patch(replica, "--write") == 0
    assert replica.model_file.read_text().endswith("# <<< muse-adapter attach")
    assert patch(replica, "--reverse") == 0
    assert replica.model_file.read_text() == moved


def test_attach_comes_after_the_last_init_weights(replica: Host) -> None:
    line = "        self.apply(self.init_weights)\n"
    edit(replica.model_file, line, f"{line}        if True:\n    {line}        self.after = 1\n")
    patch(replica, "--write")
    text = replica.model_file.read_text()
    assert text.rindex(line.strip()) < text.index("attach(self") < text.index("self.after")
    assert "\n        muse_adapter.clip4clip.attach(" in text, "must not be inside the if"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("model", "class CLIP4Clip", "class Other", "exactly one class CLIP4Clip, found none"),
        ("model", "def get_visual_output", "def other", "def get_visual_output in class CLIP4Clip"),
        ("model", "self.apply(self.init_weights)", "pass", r"expected self.apply\(self.init_weig"),
        ("model", "self.task_config = ", "self.other = ", "__init__ sets no task_config"),
        ("model", "video_frame=-1)", "video_frame=-1, audio=None)", "also takes audio"),
        ("model", "shaped=False, video_frame=-1)", "shaped=False)", "no parameter video_frame"),
        ("model", "features.size(-1))\n", "features.size(-1)), 1\n", "it returns 2"),
        (
            "model",
            "        return features.view",
            "        features = self.select(features)\n        return features.view",
            r"does more than reshape .*`features = self.select\(features\)`",
        ),
        (
            "model",
            "features = self.clip.encode_image(",
            "if shaped: features = self.clip.encode_image(",
            "shares its line with other code",
        ),
        (
            "model",
            "        features = self.clip.encode_image(",
            "        if True:\n            features = self.clip.encode_image(",
            "inside another statement",
        ),
        ("model", "self.clip.encode_image(", "self.vision.encode_image(", "not self.clip.encode"),
        (
            "model",
            "        text = self.clip.encode_text(",
            "        self.clip.encode_image(video)\n        text = self.clip.encode_text(",
            "calls encode_image 2 times",
        ),
        ("model", "class CLIP4Clip", "class CLIP4Clip(", "modules/modeling.py, line .* compile"),
        ("main", "def get_args", "def arguments", "exactly one def get_args, found none"),
        ("main", "parser.parse_args()", "parser.parse()", "call of parse_args in get_args, found"),
        ("main", "parser.parse_args()", "make().parse_args()", r"on a variable, got make\(\)"),
        ("main", "BertAdam(\n", "AdamW(\n", "call of BertAdam in prep_optimizer, found none"),
        ("main", "        groups,\n", "        [*groups],\n", "must be a variable"),
        ("main", "def prep_optimizer(args, ", "def prep_optimizer(a, ", "has no parameter args"),
        ("clip", "return feature, tokens", "return tokens", "does not return the pair"),
        (
            "clip",
            "        if return_hidden:\n            return feature, tokens\n",
            "",
            "not return the",
        ),
        ("clip", "return_hidden: bool = False, ", "", "has no parameter return_hidden"),
        ("clip", "class CLIP(", "class Model(", "exactly one class CLIP, found none"),
    ],
)
def test_unsupported_checkouts_are_rejected(
    replica: Host,
    file: str,
    old: str,
    new: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {
        "model": replica.model_file,
        "main": replica.main_file,
        "clip": replica.path / "modules" / "module_clip.py",
    }
    edit(paths[file], old, new)
    before = replica.contents()
    with pytest.raises(PatchError, match=message):
        make_plan(replica.path, HOSTS["clip4clip"])
    for options in ([], ["--write"], ["--check"]):
        assert patch(replica, *options) == 2
        assert re.search(message, capsys.readouterr().err)
    assert replica.contents() == before


def test_duplicate_functions_are_rejected(replica: Host) -> None:
    text = replica.main_file.read_text()
    replica.main_file.write_text(text + "\n\n" + text[text.index("def get_args") :])
    with pytest.raises(PatchError, match=r"exactly one def get_args, found 2 \(lines"):
        make_plan(replica.path, HOSTS["clip4clip"])
