"""What a saved model says about itself: what it is and what was measured, nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

TASK = "text-video retrieval"
TAGS = ("sentence-transformers", "feature-extraction", "text-video-retrieval", "muse-adapter")


def describe(model: Any, module: Any) -> None:
    """Give a model our model card, with the fields that its user has set.

    That library's own says of every model that it was trained and what it is good for, and shows
    similarities of sentences about the weather. Results of its evaluators and trainer come into
    either card.

    Args:
        model: The `SentenceTransformer` or `MultiVectorEncoder`.
        module: Its `VideoTransformer`.
    """
    card = model.model_card_data
    if card.tags == type(card)().tags:
        card.tags = list(TAGS)
    card.task_name = TASK
    card.pipeline_tag = "feature-extraction"
    card.template_path = Path(__file__).with_name("model_card.md")
    card.generate_widget_examples = False
    card.generate_usage_snippet = partial(_usage_snippet, card)
    # It would look up parts of local paths on the hub, and take what it finds for the origin.
    card.first_save = False
    if card.base_model is None and module.base_model is not None:
        card.base_model = module.base_model
        card.base_model_revision = module.base_model_revision


def _usage_snippet(card: Any) -> str:
    return f"""```python
# pip install 'muse-adapter[search]'
from muse_adapter.sentence_transformers import load

model = load("{card.model_id or "path/to/this/model"}")
texts = model.encode_query(["a dog catches a ball"])
videos = model.encode_document(["dog.mp4", "cat.mp4"])
print(model.similarity(texts, videos))
```"""
