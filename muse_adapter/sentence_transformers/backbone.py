"""A Hugging Face model with a vision and a text tower, with its processor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoProcessor, SiglipImageProcessor


@dataclass
class Backbone:
    """A model and its processor.

    Attributes:
        model: The model, with `get_text_features`.
        processor: Its processor, with an `image_processor` and a `tokenizer`.
        base_model: Name on the Hugging Face hub that the weights come from, or None.
        base_model_revision: Commit of that name, or None.
    """

    model: Any
    processor: Any
    base_model: str | None = None
    base_model_revision: str | None = None


def load_backbone(
    name: str | os.PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
) -> Backbone:
    """Load a model and its processor, both of one commit, and without code of the repository.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        subfolder: Where in it.
        revision: Branch, tag or commit; None: the main branch as it is now.
        token: Access token of the hub.
        cache_folder: Where the hub's files are kept.
        local_files_only: Whether to ask the hub for nothing.
        model_kwargs: Of `AutoModel.from_pretrained`, such as `dtype`.
        processor_kwargs: Of `AutoProcessor.from_pretrained`.
        config_kwargs: Of `AutoConfig.from_pretrained`.
    """
    hub = {
        "subfolder": subfolder,
        "revision": revision,
        "token": token,
        "cache_dir": cache_folder,
        "local_files_only": local_files_only,
    }
    config = AutoConfig.from_pretrained(name, **{**hub, **(config_kwargs or {})})
    # A branch may move between two downloads.
    commit = getattr(config, "_commit_hash", None)
    hub["revision"] = commit or revision
    model = AutoModel.from_pretrained(name, config=config, **{**hub, **(model_kwargs or {})})
    processor = AutoProcessor.from_pretrained(name, **{**hub, **(processor_kwargs or {})})
    return Backbone(model, processor, None if commit is None else os.fspath(name), commit)


class TextInputs:
    """How the texts of a model are tokenized, and its words projected.

    Args:
        backbone: The model and its processor.

    Attributes:
        projection: The layer from hidden states (..., C) to embeddings (..., D).
        full_length: Number of tokens that all texts are padded to, without a mask, as SigLIP was
            trained; None for models that read their texts' own length.
        max_length: Largest number of tokens of a text.

    Raises:
        TypeError: The model embeds no texts, or its words cannot be projected as its texts are.
    """

    def __init__(self, backbone: Backbone) -> None:
        model, config = backbone.model, getattr(backbone.model.config, "text_config", None)
        siglip_head = getattr(getattr(model, "text_model", None), "head", None)
        projection = getattr(model, "text_projection", siglip_head)
        fits = isinstance(projection, nn.Linear) and config is not None
        if not (fits and hasattr(model, "get_text_features")):
            raise TypeError(
                "expected a Hugging Face model with a text tower beside its vision tower (CLIP, "
                f"SigLIP, SigLIP 2 and models of their structure), got {type(model).__name__}"
            )
        if projection.in_features != config.hidden_size:
            raise TypeError(
                f"the words of {type(model).__name__} have width {config.hidden_size}, but its text "
                f"projection takes {projection.in_features}"
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


class FrameInputs:
    """The image processor of a model, for frames of one size.

    Args:
        backbone: The model and its processor.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.processor = backbone.processor.image_processor
        vision = backbone.model.config.vision_config
        if hasattr(vision, "num_patches") and not hasattr(vision, "image_size"):
            # NaFlex processors keep the shape of each image and give patches: the frames of all
            # videos need one size, the square that the model's positions are made for.
            side = int(vision.num_patches**0.5) * vision.patch_size
            given = self.processor
            self.processor = SiglipImageProcessor(
                size={"height": side, "width": side},
                resample=given.resample,
                rescale_factor=given.rescale_factor,
                image_mean=given.image_mean,
                image_std=given.image_std,
            )

    def pad(self, videos: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Preprocess the frames of videos and pad them to the longest.

        Args:
            videos: B videos of frames (3, height, width), uint8; they may differ in size, and a
                video may have none.

        Returns:
            Frames (B, T, 3, height, width), zero where padded, and the frame mask (B, T), 1 where
            not.
        """
        flat = [frame for video in videos for frame in video]
        # One black frame stands for a batch without any.
        images = flat or [torch.zeros(3, 32, 32, dtype=torch.uint8)]
        pixels = self.processor(
            images=images, input_data_format="channels_first", return_tensors="pt"
        )["pixel_values"]
        lengths = torch.tensor([len(video) for video in videos])
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        frames = pixels.new_zeros(*mask.shape, *pixels.shape[1:])
        if flat:
            frames[mask] = pixels
        return frames, mask.long()
