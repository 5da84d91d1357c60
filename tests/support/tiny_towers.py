"""Tiny models of two towers with processors, built from their configs; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from tests.support.real_backbones import CLIP, SIGLIP, SIGLIP_2
from tests.support.small_encoders import small_head
from tests.support.tiny_clips import shake

WORDS = [
    "a",
    "the",
    "small",
    "large",
    "red",
    "green",
    "dog",
    "cat",
    "ball",
    "moves",
    "left",
    "right",
]
SPECIAL = ["<pad>", "<start>", "<unk>", "<end>"]  # 2 as the end is a quirk of old configs of CLIP


def tokenizer(start: bool) -> PreTrainedTokenizerFast:
    """Build a tokenizer of `WORDS`; texts end with `<end>`, and may begin with `<start>`."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>" if start else "$A <end>",
        special_tokens=[("<start>", 1), ("<end>", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=8,
    )


def tiny_clip() -> tuple[nn.Module, Any]:
    """Build a CLIP with random weights, and its processor."""
    text = CLIP["text_config"] | {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    model = CLIPModel(CLIPConfig(**CLIP | {"text_config": text}))
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return shake(model).eval(), CLIPProcessor(images, tokenizer(start=True))


def tiny_siglip() -> tuple[nn.Module, Any]:
    """Build a SigLIP (or SigLIP 2 of fixed resolution) with random weights, and its processor."""
    model = SiglipModel(SiglipConfig(**SIGLIP))
    images = SiglipImageProcessor(size={"height": 16, "width": 16})
    return shake(model).eval(), SiglipProcessor(images, tokenizer(start=False))


def tiny_siglip_2() -> tuple[nn.Module, Any]:
    """Build a SigLIP 2 of free resolution (NaFlex) with random weights, and its processor."""
    model = Siglip2Model(Siglip2Config(**SIGLIP_2))
    images = Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
    # Its own class, which transformers takes for this model whatever was saved: letters as words.
    letters = {letter: i for i, letter in enumerate([*SPECIAL, "▁", *map(chr, range(97, 123))])}
    special = dict(zip(("pad_token", "bos_token", "unk_token", "eos_token"), SPECIAL, strict=True))
    texts = Siglip2Tokenizer(letters, [], model_max_length=8, padding_side="right", **special)
    return shake(model).eval(), Siglip2Processor(images, texts)


TOWERS = {"CLIP": tiny_clip, "SigLIP": tiny_siglip, "SigLIP 2": tiny_siglip_2}


def tiny_transformer(family: str = "CLIP", **options: Any) -> Any:
    """Build a `VideoTransformer` of one of `TOWERS`, in which patches affect the features."""
    from muse_adapter.sentence_transformers import VideoTransformer

    torch.manual_seed(0)
    model, processor = TOWERS[family]()
    head = options.pop("head", None) or small_head(12 if family == "CLIP" else 16)
    return VideoTransformer(model, processor=processor, head=head, **options)
