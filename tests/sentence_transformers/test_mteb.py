"""mteb: its wrapper and its tasks on our model, and our two stages as its `SearchProtocol`."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
if importlib.util.find_spec("mteb") is None:  # importing it takes seconds
    pytest.skip("mteb is not installed", allow_module_level=True)

from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from muse_adapter import retrieval_metrics
from tests.support.small_encoders import ROUNDING
from tests.support.tiny_towers import tiny_transformer
from tests.support.video_decoders import video_dataset
from tests.support.video_files import write_video

pytestmark = [pytest.mark.usefixtures("torch_scan"), pytest.mark.slow]

NAME = "me/tiny"
WORDS = ("red dog", "green cat", "small ball", "large dog moves", "the ball moves left", "a cat")
CAPTIONS = [f"{start} {words}" for start in ("a", "the small") for words in WORDS]
TARGETS = [i % len(WORDS) for i in range(len(CAPTIONS))]  # two captions of each video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Videos of different colours and lengths, most of them longer than the model samples."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    paths = []
    for i in range(len(WORDS)):
        colours = random.integers(0, 256, (4 + 3 * i, 1, 1, 3), dtype=np.uint8)
        frames = np.broadcast_to(colours, (len(colours), 32, 32, 3))
        paths.append(str(write_video(folder / f"{i}.mp4", list(frames))))
    return paths


@pytest.fixture
def model() -> SentenceTransformer:
    return SentenceTransformer(modules=[tiny_transformer(num_frames=4)], device="cpu")


def make_task(clips: list[str], top_ranked: dict[str, list[str]] | None = None) -> Any:
    """Build a task of the class and with the metadata of mteb's own from text to video."""
    import datasets
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.tasks.retrieval.eng.msr_vtt import MSRVTTT2V

    class Task(AbsTaskRetrieval):
        metadata = MSRVTTT2V.metadata.model_copy(update={"name": "Tiny", "is_beta": False})

        def load_data(self, num_proc: int | None = None, **options: Any) -> None:
            ids = [str(i) for i in range(len(CAPTIONS))]
            self.dataset = {"default": {}}
            self.dataset["default"]["test"] = RetrievalSplitData(
                queries=datasets.Dataset.from_dict({"id": ids, "text": CAPTIONS}),
                corpus=video_dataset([f"v{i}" for i in range(len(clips))], clips),
                relevant_docs={i: {f"v{TARGETS[int(i)]}": 1} for i in ids},
                top_ranked=top_ranked,
            )
            self.data_loaded = True

    return Task()


def evaluate(model: Any, task: Any, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Return mteb's figures, and the scores of each query that it keeps."""
    import mteb

    result = mteb.evaluate(
        model,
        task,
        cache=None,
        prediction_folder=folder,
        encode_kwargs={"batch_size": 4},
        show_progress_bar=False,
    )
    (figures,) = result.task_results[0].scores["test"]
    (file,) = folder.rglob("*predictions.json")
    return figures, json.loads(file.read_text())["default"]["test"]


def check_figures(
    figures: dict[str, float], similarity: Tensor, targets: list[int] = TARGETS
) -> None:
    """Compare the figures with those of `retrieval_metrics`, and nDCG with its definition."""
    expected = retrieval_metrics(similarity, torch.tensor(targets), ks=(1, 3, 5))["t2v"]
    for k in (1, 3, 5):
        assert figures[f"recall_at_{k}"] * 100 == pytest.approx(expected[f"R@{k}"], abs=1e-2)
    own = similarity.gather(1, torch.tensor(targets)[:, None])
    ranks = (similarity > own).sum(1).tolist()  # from 0
    gains = [1 / math.log2(rank + 2) for rank in ranks]
    assert figures["ndcg_at_10"] == pytest.approx(sum(gains) / len(gains), abs=1e-4)
    assert len(set(ranks)) > 2, "the captions are to have different ranks"


def matrix(scores: dict[str, dict[str, float]], videos: int) -> Tensor:
    """Bring the scores of queries and videos to a matrix, minus infinity where there is none."""
    rows = torch.full((len(scores), videos), -torch.inf)
    for query, found in scores.items():
        for document, score in found.items():
            rows[int(query), int(document[1:])] = score
    return rows


def test_the_wrapper_gives_our_figures(
    model: SentenceTransformer, clips: list[str], tmp_path: Path
) -> None:
    from muse_adapter.sentence_transformers.mteb import as_encoder

    figures, scores = evaluate(as_encoder(model, name=NAME), make_task(clips), tmp_path)
    similarity = model.similarity(model.encode_query(CAPTIONS), model.encode_document(clips))
    torch.testing.assert_close(matrix(scores, len(clips)), similarity, **ROUNDING[torch.float32])
    check_figures(figures, similarity)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("msr_vtt", "MSRVTTT2V"),
        ("didemo_retrieval", "DiDeMoT2VRetrieval"),
        ("activitynet_captions_retrieval", "ActivityNetCaptionsT2VRetrieval"),
    ],
)
@pytest.mark.filterwarnings("ignore:The task .* (is currently in beta|is superseded)")
def test_tasks_of_mteb_on_other_data(
    file: str,
    name: str,
    model: SentenceTransformer,
    clips: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their own code reads what the hub would give: one caption of each video."""
    import mteb

    from muse_adapter.sentence_transformers.mteb import as_encoder

    captions = CAPTIONS[: len(clips)]
    data = video_dataset(captions, clips).rename_column("id", "caption")
    monkeypatch.setattr(f"mteb.tasks.retrieval.eng.{file}.load_dataset", lambda *_, **__: data)
    figures, _ = evaluate(as_encoder(model, name=NAME), mteb.get_task(name), tmp_path)
    similarity = model.similarity(model.encode_query(captions), model.encode_document(clips))
    check_figures(figures, similarity, list(range(len(clips))))


def test_late_interaction_gives_our_figures(clips: list[str], tmp_path: Path) -> None:
    from muse_adapter.sentence_transformers.mteb import as_encoder

    model = MultiVectorEncoder(modules=[tiny_transformer(num_frames=4)], device="cpu")
    figures, scores = evaluate(as_encoder(model, name=NAME), make_task(clips), tmp_path)
    similarity = model.similarity(model.encode_query(CAPTIONS), model.encode_document(clips))
    torch.testing.assert_close(matrix(scores, len(clips)), similarity, **ROUNDING[torch.float32])
    check_figures(figures, similarity)


def all_frame_scores(model: Any, clips: list[str]) -> Tensor:
    """Score every text with every video by its frames, without a search."""
    outputs: Any = model.encode_document(clips, output_value=None)
    frames = [each["token_embeddings"][each["attention_mask"].bool()] for each in outputs]
    texts = model.encode_query(CAPTIONS, convert_to_tensor=True)
    return torch.stack([model[0].score_frames(text, frames) for text in texts])


@pytest.mark.parametrize("candidates", [50, 3])
def test_two_stages(
    candidates: int, model: SentenceTransformer, clips: list[str], tmp_path: Path
) -> None:
    from mteb.models import SearchProtocol

    from muse_adapter.sentence_transformers.mteb import TwoStageSearch

    search = TwoStageSearch(model, candidates=candidates, name=NAME)
    assert isinstance(search, SearchProtocol)
    figures, scores = evaluate(search, make_task(clips), tmp_path)
    fine = all_frame_scores(model, clips)
    coarse = model.similarity(model.encode_query(CAPTIONS), model.encode_document(clips))
    left_out = coarse.argsort(dim=1, descending=True)[:, candidates:]
    expected = fine.scatter(1, left_out, -torch.inf)
    torch.testing.assert_close(matrix(scores, len(clips)), expected, **ROUNDING[torch.float32])
    if candidates >= len(clips):
        check_figures(figures, fine)
        assert not torch.equal(fine.argsort(1), coarse.argsort(1)), "the frames reorder something"


def test_candidates_of_a_task(model: SentenceTransformer, clips: list[str], tmp_path: Path) -> None:
    from muse_adapter.sentence_transformers.mteb import TwoStageSearch

    given = {str(i): ["v5", "v0", "v2"][: 1 + i % 3] for i in range(len(CAPTIONS))}
    search = TwoStageSearch(model, candidates=1, name=NAME)
    _, scores = evaluate(search, make_task(clips, given), tmp_path)
    fine = all_frame_scores(model, clips)
    assert {query: set(found) for query, found in scores.items()} == {
        query: set(ids) for query, ids in given.items()
    }
    assert scores["4"]["v5"] == pytest.approx(float(fine[4, 5]), abs=1e-5)


def test_results_are_kept_under_the_name_and_the_settings(model: SentenceTransformer) -> None:
    from muse_adapter.sentence_transformers.mteb import TwoStageSearch, as_encoder

    module: Any = model[0]
    with pytest.raises(ValueError, match=r'name="owner/name" is needed .*, got None'):
        as_encoder(model)
    with pytest.raises(ValueError, match="got 'tiny'"):
        as_encoder(model, name="tiny")
    meta = as_encoder(model, name=NAME, revision="2").mteb_model_meta
    assert (meta.name, meta.revision) == (NAME, "2")
    assert meta.experiment_kwargs == {"num_frames": 4}
    assert {"text", "video"} <= set(meta.modalities)
    module.fps = 2.0
    wrapper = as_encoder(model, name=NAME)
    assert (wrapper.fps, wrapper.max_frames, wrapper.num_frames) == (2.0, 4, None)
    module._places.append(("them/theirs", "abc"))
    meta = TwoStageSearch(model, candidates=7).mteb_model_meta
    assert (meta.name, meta.revision) == ("them/theirs", "abc")
    assert meta.experiment_kwargs == {"fps": 2.0, "max_frames": 4, "candidates": 7}


def test_what_is_refused(model: SentenceTransformer, clips: list[str]) -> None:
    import datasets

    from muse_adapter.sentence_transformers.mteb import TwoStageSearch, as_encoder

    with pytest.raises(TypeError, match="must be a VideoTransformer, got Linear"):
        as_encoder(torch.nn.Sequential(torch.nn.Linear(1, 1)), name=NAME)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        TwoStageSearch(model, candidates=0, name=NAME)
    search = TwoStageSearch(model, name=NAME)
    texts = datasets.Dataset.from_dict({"id": ["0"], "text": ["a dog"]})
    with pytest.raises(RuntimeError, match="call index first"):
        search.search(texts, top_k=1, encode_kwargs={})
    with pytest.raises(ValueError, match="id and video of a document, got no video"):
        search.index(texts, encode_kwargs={})
    search.index(video_dataset(["v0"], clips[:1]), encode_kwargs={})
    with pytest.raises(ValueError, match="1 ids of the corpus are repeated, the first 'v1'"):
        search.index(video_dataset(["v0", "v1", "v1"], clips[:3]), encode_kwargs={})
    none = datasets.Dataset.from_dict({"id": [], "text": []})
    assert search.search(none, top_k=1, encode_kwargs={}) == {}
    assert search.search(none, top_k=1, encode_kwargs={}, top_ranked={}) == {}
    with pytest.raises(ValueError, match="id and text of a query, got no text"):
        search.search(video_dataset(["v0"], clips[:1]), top_k=1, encode_kwargs={})
