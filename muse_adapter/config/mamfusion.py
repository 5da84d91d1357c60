"""The configuration of MamFusion."""

from __future__ import annotations

from dataclasses import dataclass

from muse_adapter.config.base import (
    JsonConfig,
    check_int,
    check_maxima,
    check_name,
    checked_rate,
)

RESIDUALS = ("concat",)

# Far above any model. The order is that of the checks.
_MAXIMA = {
    "visual_width": 1 << 16,
    "text_width": 1 << 16,
    "hidden": 1 << 14,
    "heads": 1 << 10,
    "num_clips": 1 << 14,
    "max_frames": 1 << 20,
    "max_words": 1 << 14,
    "d_state": 1 << 12,
    "d_conv": 1 << 10,
    "expand": 1 << 8,
}


@dataclass(frozen=True)
class MamFusionConfig(JsonConfig):
    """All settings of a MamFusion, as plain values; the defaults are those published for TVR.

    Args:
        visual_width: Width of the frame features.
        text_width: Width of the word features.
        hidden: Width D of the network.
        heads: Attention heads; `hidden` must be divisible by it.
        num_clips: Clips that a video is cut into.
        max_frames: Most frames of the frame branch; a longer video is averaged to as many segments.
        max_words: Words of a sentence that are read.
        d_state: State size S of the scans.
        d_conv: Kernel size of Mamba's causal convolution.
        expand: Inner width of Mamba, as a multiple of `hidden`.
        input_dropout: Rate in the input blocks.
        dropout: Rate in the attention layers.
        residual: None, the published model; or "concat", ours: clips and queries keep the given
            features beside what is learned, so visual and text features must be of one space.
        fusion: Add the temporal fusion of pairs, `MamFusion.fused_similarity`.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field has an invalid value, `heads` do not divide `hidden`, or the widths
            differ with `residual="concat"`.
    """

    visual_width: int
    text_width: int
    hidden: int = 384
    heads: int = 8
    num_clips: int = 32
    max_frames: int = 512
    max_words: int = 30
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    input_dropout: float = 0.2
    dropout: float = 0.45
    residual: str | None = None
    fusion: bool = False

    def __post_init__(self) -> None:
        for name in _MAXIMA:
            check_int(name, getattr(self, name), minimum=1)
        check_maxima(self, _MAXIMA)
        for name in ("input_dropout", "dropout"):  # the dataclass is frozen
            object.__setattr__(self, name, checked_rate(name, getattr(self, name)))
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden must be divisible by heads, got {self.hidden} and {self.heads}"
            )
        if not isinstance(self.fusion, bool):
            raise TypeError(f"fusion must be a bool, got {self.fusion!r}")
        if self.residual is None:
            return
        check_name("residual", self.residual, RESIDUALS)
        if self.visual_width != self.text_width:
            raise ValueError(
                "residual='concat' compares the given features, so visual_width and text_width "
                f"must be equal, got {self.visual_width} and {self.text_width}"
            )
