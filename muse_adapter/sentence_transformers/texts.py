"""How the texts of a model are tokenized and embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.sentence_transformers.backbone import Backbone


class TextInputs:
    """How the texts of a model are tokenized, and its words projected.

    Args:
        backbone: The model and its processor.

    Attributes:
        width: Width D of the embeddings.
        full_length: Number of tokens that all texts are padded to, without a mask, as SigLIP was
            trained; None for models that read their texts' own length.
        max_length: Largest number of tokens of a text.

    Raises:
        TypeError: The model embeds no texts, or its words cannot be projected as its texts are.
    """

    def __init__(self, backbone: Backbone) -> None:
        model = backbone.model
        config: Any = getattr(model.config, "text_config", None)
        siglip_head = getattr(getattr(model, "text_model", None), "head", None)
        projection: Any = getattr(model, "text_projection", siglip_head)
        fits = isinstance(projection, nn.Linear) and config is not None
        if not (fits and hasattr(model, "get_text_features")):
            raise TypeError(
                "expected a Hugging Face model with a text tower beside its vision tower (CLIP, "
                f"SigLIP, SigLIP 2 and models of their structure), got {type(model).__name__}"
            )
        if projection.in_features != config.hidden_size:
            raise TypeError(
                f"the words of {type(model).__name__} have width {config.hidden_size}, but its "
                f"projection of texts takes {projection.in_features}"
            )
        positions = config.max_position_embeddings
        self.width = int(projection.out_features)
        self.full_length = positions if projection is siglip_head else None
        self.max_length = min(positions, backbone.processor.tokenizer.model_max_length)
        if self.full_length is not None:
            self.max_length = self.full_length

    def tokenize(self, tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
        """Tokenize texts as the model was trained.

        Args:
            tokenizer: The model's tokenizer.
            texts: B texts.
            max_length: Texts are cut to this many tokens; not used where there is a full length.

        Returns:
            `input_ids` and `attention_mask`, (B, L), whatever else the tokenizer gives, and
            `word_mask`, (B, L), 1 for the tokens that count as words: all but padding, and always
            the one that the embedding of the text is read from.
        """
        if self.full_length is None:
            encoded = tokenizer(
                list(texts),
                padding=True,
                truncation=True,
                max_length=max_length,
                return_attention_mask=True,
                return_tensors="pt",
            )
            return {**encoded, "word_mask": encoded["attention_mask"]}
        encoded = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.full_length,
            padding_side="right",
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        no_mask = torch.ones_like(mask)
        mask[:, -1] = 1  # SigLIP reads a text from its last token, padding or not
        return {"input_ids": ids, "attention_mask": no_mask, "word_mask": mask}


def text_features(model: Any, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Embed texts and their words in one pass.

    Args:
        model: A model that `TextInputs` takes.
        tokens: What `TextInputs.tokenize` gives, without `word_mask`.

    Returns:
        Texts (B, D), and words (B, L, D) projected like the texts; neither is normalised.
    """
    output = model.get_text_features(**tokens)
    projection = getattr(model, "text_projection", None) or model.text_model.head
    return output.pooler_output, projection(output.last_hidden_state)
