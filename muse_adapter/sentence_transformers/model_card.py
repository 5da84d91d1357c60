"""What a saved model says about itself: what it is and what was measured, nothing else."""

from __future__ import annotations

from types import MethodType
from typing import Any

TASK = "text-video retrieval"
TAGS = ("sentence-transformers", "feature-extraction", "text-video-retrieval", "muse-adapter")


def describe(model: Any, module: Any) -> None:
    """Fill in the model card of a model, where its user has said nothing else.

    Results of evaluations and of a training are added by that library where there were any. Its
    sentences about the weather and their similarities are left out.

    Args:
        model: The `SentenceTransformer` or `MultiVectorEncoder`.
        module: Its `VideoTransformer`.
    """
    card = model.model_card_data
    default = type(card)()
    if card.task_name in (default.task_name, None) or card.task_name.startswith("semantic search"):
        card.task_name = TASK
    if card.tags == default.tags:
        card.tags = list(TAGS)
    card.generate_widget_examples = False
    card.generate_usage_snippet = MethodType(_usage_snippet, card)
    # That library looks up parts of local paths on the hub, and takes what it finds for the origin.
    card.first_save = False
    if card.base_model is None and module.base_model is not None:
        card.base_model = module.base_model
        card.base_model_revision = module.base_model_revision


def _usage_snippet(card: Any) -> str:
    name = card.model_id or "path/to/this/model"
    return f"""```python
# pip install 'muse-adapter[search]'
from muse_adapter.sentence_transformers import load

model = load("{name}")
texts = model.encode_query(["a dog catches a ball"])
videos = model.encode_document(["dog.mp4", "cat.mp4"])
print(model.similarity(texts, videos))
```"""
