"""Clips and a CLIP that the tests of the quickstart share, made once."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

# The quickstart itself is imported in the fixtures: where a library it needs is missing, the test
# files say so.
if TYPE_CHECKING:
    from examples.quickstart.captions import Clip
    from examples.quickstart.material import Material


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Clip]]]:
    """A tiny rendered corpus: its folder and its clips."""
    pytest.importorskip("av", reason="rendering clips needs PyAV: muse-adapter[video]")
    from examples.quickstart.corpus import synthetic_corpus
    from tests.support.quickstart import SIZES

    folder = tmp_path_factory.mktemp("material") / "corpus"
    return folder, synthetic_corpus(folder, **SIZES, progress=False)


@pytest.fixture(scope="session")
def material(rendered: tuple[Path, dict[str, list[Clip]]]) -> Material:
    """The same corpus, decoded."""
    from examples.quickstart.material import load_material
    from tests.support.quickstart import SIZES, TINY

    return load_material(
        rendered[0].parent,
        num_frames=TINY.num_frames,
        size=TINY.size,
        corpus_sizes=SIZES,
        progress=False,
    )


@pytest.fixture(scope="session")
def own(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of videos, one of them broken, and the CSV of their captions."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["video,caption"]
    clips = material.splits["train"].clips[:12]
    for clip in clips:
        shutil.copy(clip.path, folder)
        lines.append(f"{clip.path.name},{clip.caption}")
    lines.append(f"{clips[0].path.name},the same video in other words")
    (folder / "broken.mp4").write_bytes(b"no video")
    lines.append("broken.mp4,something that cannot be read")
    captions = folder.parent / f"{folder.name}.csv"
    captions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder, captions


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing, which takes longer than the rest of a tiny run."""
    from examples.quickstart import demo

    monkeypatch.setattr(demo, "contact_sheet", lambda *_: None)
    monkeypatch.setattr(demo, "draw_curves", lambda *_: None)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face CLIP with random weights and a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers", reason="a CLIP folder needs transformers")
    pytest.importorskip("safetensors", reason="a CLIP folder needs safetensors")
    folder = tmp_path_factory.mktemp("clip")
    letters = string.ascii_lowercase
    end = "<|endoftext|>"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", end]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", **special})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]})
    )
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": len(words), "max_position_embeddings": 60,
                     "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder
