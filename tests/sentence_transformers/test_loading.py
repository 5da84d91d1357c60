"""Saving and loading: the same digits, one revision, and no code that came with a model."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from muse_adapter.sentence_transformers import VideoTransformer, load, loading
from tests.support.tiny_towers import TOWERS, tiny_transformer

pytestmark = pytest.mark.usefixtures("torch_scan")

TEXTS = ["a small red dog", "the ball"]


def saved(folder: Path, family: str = "CLIP", **options: Any) -> SentenceTransformer:
    model = SentenceTransformer(modules=[tiny_transformer(family, **options)], device="cpu")
    model.save_pretrained(str(folder))
    return model


def edit_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("family", TOWERS)
def test_loaded_to_the_last_digit(family: str, videos: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path, family, num_frames=5, fps=4, freeze=True, skip_unreadable=True)
    if family == "CLIP":
        model.max_seq_length = 6
        model.save_pretrained(str(tmp_path))
    for loaded in (
        load(tmp_path, device="cpu"),
        SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu"),
    ):
        for inputs in (TEXTS, videos):
            assert (loaded.encode(inputs) == model.encode(inputs)).all()
        assert loaded[0].get_config_dict() == model[0].get_config_dict()
        assert repr(loaded) == repr(model)


def test_an_upload_is_no_place_to_load_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, **options: Any) -> Any:
            return SimpleNamespace(repo_id="me/model")

        def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
            assert model[0].saved_in == (folder_path, None)
            return SimpleNamespace(commit_url="https://hub/me/model/commit/1")

    monkeypatch.setattr("sentence_transformers.base.model.HfApi", Hub)
    model: Any = saved(tmp_path / "one")
    assert model[0].saved_in == (str(tmp_path / "one"), None)
    model.push_to_hub("me/model", replace_model_card=True)
    assert model[0].saved_in == (str(tmp_path / "one"), None)
    model.save_pretrained(str(tmp_path / "two"))
    assert model[0].saved_in == (str(tmp_path / "two"), None)
    assert tiny_transformer().saved_in is None


def test_precision_and_other_modules_are_kept(videos: list[str], tmp_path: Path) -> None:
    module = tiny_transformer().double()
    model = SentenceTransformer(modules=[module, Pooling(12, "max")], device="cpu")
    model.save_pretrained(str(tmp_path))
    loaded = load(tmp_path, device="cpu")
    before, after = (m.encode(videos, convert_to_tensor=True) for m in (model, loaded))
    assert after.dtype == torch.float64 and torch.equal(before, after)


EVIL = "raise SystemExit('this code must not run')"


@pytest.mark.parametrize(
    "name",
    [
        "evil.Module",
        "muse_adapter.Module",
        "os.system",
        "muse_adapter.MultiScaleMamba",
        "sentence_transformers.base.modules.module.torch",
        "sentence_transformers.no.Module",
    ],
)
def test_other_classes_are_refused_by_name(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit_json(tmp_path / "modules.json", lambda modules: modules[0].update(type=name))
    for file in ("evil.py", "muse_adapter.py"):
        (tmp_path / file).write_text(EVIL)
    with pytest.raises(ValueError, match=f"neither of sentence-transformers nor .*: {name}"):
        load(tmp_path)


def test_code_named_by_the_config_does_not_run(tmp_path: Path) -> None:
    """Not even with `trust_remote_code`, which that library asks for because of our class."""
    saved(tmp_path)
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoProcessor": "evil.Proc"}
    edit_json(tmp_path / "config.json", lambda config: config.update(auto_map=auto))
    (tmp_path / "evil.py").write_text(EVIL)
    assert len(load(tmp_path, device="cpu").encode(TEXTS)) == 2
    trusted = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert len(trusted.encode(TEXTS)) == 2


def test_that_library_asks_before_it_loads_our_class(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"muse_adapter\.sentence_transformers\.VideoTransformer"):
        SentenceTransformer(str(tmp_path))


@pytest.mark.parametrize("missing", ["modules.json", "video_transformer_config.json"])
def test_incomplete_folders(missing: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load(tmp_path)


@pytest.mark.parametrize("name", ["", "model", "./missing", "a/b/c", "/no/model", "{file}"])
def test_names_that_are_none_do_not_reach_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_file_path", lambda *args, **kwargs: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match="expected a folder or a hub id 'owner/name', got"):
        load(name.format(file="file"))


def hub_copy(cache: Path, name: str, commits: dict[str, Any]) -> None:
    """Lay out what the hub's client keeps of a repository: commits by branch or tag."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for number, (branch, save) in enumerate(commits.items()):
        commit = str(number) * 40
        (folder / "refs" / branch).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        save(folder / "snapshots" / commit)


def test_everything_is_of_one_revision(tmp_path: Path) -> None:
    models = {}

    def save(branch: str, scale: float) -> Any:
        def write(folder: Path) -> None:
            module = tiny_transformer()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(scale)
            models[branch] = SentenceTransformer(modules=[module], device="cpu")
            models[branch].save_pretrained(str(folder))

        return write

    hub_copy(tmp_path, "us/tiny", {"main": save("main", 1.0), "v1": save("v1", 0.5)})
    frames = torch.rand(2, 3, 3, 16, 16)
    hub = {"cache_folder": str(tmp_path), "local_files_only": True}
    for branch, commit in (("main", "0" * 40), ("v1", "1" * 40)):
        expected = models[branch][0]
        tower = VideoTransformer("us/tiny", revision=branch, **hub)
        assert (tower.base_model, tower.base_model_revision) == ("us/tiny", commit)
        for name, tensor in tower.encoder.backbone.state_dict().items():
            assert torch.equal(tensor, expected.encoder.backbone.state_dict()[name])
        loaded = load("us/tiny", revision=branch, device="cpu", **hub)
        assert (loaded.encode(list(frames)) == models[branch].encode(list(frames))).all()
    # Where the weights come from stays known after saving, and stands in the card.
    SentenceTransformer(modules=[tower], device="cpu").save_pretrained(str(tmp_path / "saved"))
    assert load(tmp_path / "saved", device="cpu")[0].base_model_revision == "1" * 40
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"[us/tiny](https://huggingface.co/us/tiny) (revision {'1' * 40})" in card


def test_a_branch_that_moves_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        saved(folder, num_frames=5 + folder.name.startswith("1"))

    hub_copy(tmp_path, "us/tiny", {"main": write, "next": write})
    ref = tmp_path / "models--us--tiny" / "refs" / "main"
    find = loading.load_file_path

    def find_and_move(*args: Any, **kwargs: Any) -> str | None:
        path = find(*args, **kwargs)
        ref.write_text("1" * 40)
        return path

    monkeypatch.setattr(loading, "load_file_path", find_and_move)
    hub = {"cache_folder": str(tmp_path), "local_files_only": True, "device": "cpu"}
    assert load("us/tiny", **hub)[0].num_frames == 5
    assert load("us/tiny", **hub)[0].num_frames == 6


def test_card_says_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    model = saved(tmp_path / "new")
    card = (tmp_path / "new" / "README.md").read_text()
    assert "No evaluation of this model is recorded" in card
    assert "No training of this model is recorded" in card
    assert "embeddings of\n12 dimensions" in card and "Longest text: 8 tokens" in card
    assert "from muse_adapter.sentence_transformers import load" in card
    for word in ("weather", "Red Planet", "tensor(", "semantic textual similarity", "Unknown"):
        assert word not in card

    def evaluator(model: Any, output_path: str | None = None, **kwargs: Any) -> dict[str, float]:
        return {"t2v_R@1": 0.4375}

    evaluator.description, evaluator.name = "Retrieval", "ten clips"  # type: ignore[attr-defined]
    evaluator.primary_metric = "t2v_R@1"  # type: ignore[attr-defined]
    model.model_card_data.set_evaluation_metrics(evaluator, model.evaluate(evaluator))
    model.save_pretrained(str(tmp_path / "measured"))
    card = (tmp_path / "measured" / "README.md").read_text()
    assert "### Retrieval" in card and "0.4375" in card and "No evaluation" not in card


def test_card_keeps_what_the_user_said(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformerModelCardData

    data = SentenceTransformerModelCardData(license="mit", language="en", tags=["birds"])
    model = SentenceTransformer(modules=[tiny_transformer()], model_card_data=data, device="cpu")
    model.save_pretrained(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert "- License: mit" in card and "- Language: en" in card and "- birds" in card


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (None, r"pip install 'muse-adapter\[search\]'"),
        (SimpleNamespace(__version__="5.4.1"), "sentence-transformers 6 or newer, found 5.4.1"),
    ],
    ids=["missing", "old"],
)
def test_message_without_the_library(
    library: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.delitem(sys.modules, "muse_adapter.sentence_transformers")
    with pytest.raises(ImportError, match=message):
        importlib.import_module("muse_adapter.sentence_transformers")


def test_message_without_mteb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "muse_adapter.sentence_transformers.mteb", raising=False)
    with pytest.raises(ImportError, match=r"needs mteb: pip install 'muse-adapter\[mteb\]'"):
        importlib.import_module("muse_adapter.sentence_transformers.mteb")
