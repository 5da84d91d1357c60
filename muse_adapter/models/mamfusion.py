"""MamFusion: which long video has the moment that a sentence describes (Ying et al., ICME 2025)."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.checkpoint import check_fits, load_pretrained, load_strict, save_pretrained
from muse_adapter.config import MamFusionConfig
from muse_adapter.layers.feature_checks import check_features, check_mask
from muse_adapter.layers.mixers import BiMamba, undecayed_parameters
from muse_adapter.layers.pairs import unit
from muse_adapter.layers.pool import AttentionPool, mean_pool
from muse_adapter.layers.segments import segment_means, segment_spans
from muse_adapter.models.mamfusion_branches import VideoBranch, WordBranch
from muse_adapter.models.mamfusion_inputs import check_width, keep_mask, normalise, to_front
from muse_adapter.models.mamfusion_objective import MamFusionLoss, mamfusion_loss
from muse_adapter.models.temporal_fusion import TemporalFusion
from muse_adapter.models.video_code import CLIP_WEIGHT, VideoCode, pair_cosines


class MamFusion(nn.Module):
    """Partially relevant retrieval: rank long videos by sentences that describe a moment of them.

    A video is cut into clips of equal length. The clips, the frames and the words of a sentence are
    encoded apart from each other; a video's score is 0.7 times the largest cosine of the sentence
    and a clip, plus 0.3 times that of the sentence and all frames. Features need not be normalised.

    With `residual="concat"`, clips are [given feature ; zero-initialised projection], the video
    likewise with the mean of its frames, and queries [given sentence feature ; projection]: at
    first, the scores of a query are those of the given features, times one positive factor.

    Args:
        config: The settings.
        **fields: Fields of a `MamFusionConfig`, in place of `config`.

    Raises:
        TypeError: Both a config and fields are given, or a field is unknown or of the wrong type.
        ValueError: A field has an invalid value (see `MamFusionConfig`).
    """

    def __init__(self, config: MamFusionConfig | None = None, **fields: Any) -> None:
        super().__init__()
        if config is not None and fields:
            raise TypeError(
                f"give a MamFusionConfig or its fields, not both: got a config and {sorted(fields)}"
            )
        if config is not None and not isinstance(config, MamFusionConfig):
            raise TypeError(f"config must be a MamFusionConfig, got {type(config).__name__}")
        config = MamFusionConfig(**fields) if config is None else config
        self.config = config
        self.clip_branch = VideoBranch(config, config.num_clips)
        self.frame_branch = VideoBranch(config, config.max_frames)
        self.frame_pool = AttentionPool(config.hidden)
        self.word_branch = WordBranch(config)
        self.projections = nn.ModuleDict()
        if config.residual == "concat":
            for name in ("clips", "video"):
                self.projections[name] = nn.Linear(config.hidden, config.hidden, bias=False)
        width = config.hidden + (config.visual_width if config.residual else 0)
        self.fusion = TemporalFusion(config, width) if config.fusion else None
        self.reset_parameters()

    def encode_video(self, frames: Tensor, frame_mask: Tensor | None = None) -> VideoCode:
        """Encode videos.

        Clips and, beyond `max_frames`, frames are means of segments of the given frames, then
        divided by their norm. Masked frames influence nothing, whatever they contain; what is
        computed is that of each video alone.

        Args:
            frames: (B, T, C) features in the order of time, C the visual width.
            frame_mask: (B, T), True or 1 for a real frame; None: all are real.

        Returns:
            The clips (B, K, D) and the videos (B, D), not normalised; zero for a video without a
            real frame. With `residual="concat"`, D is the visual width plus `hidden`.

        Raises:
            TypeError: A tensor is of the wrong type.
            ValueError: The shapes do not fit, or the mask has values other than 0 and 1.
        """
        config = self.config
        sizes = check_features(frames=(frames, "B T C"))
        check_width("frames", sizes["C"], config.visual_width)
        mask = check_mask("frame_mask", frame_mask, (sizes["B"], sizes["T"]))
        frames, lengths, real = to_front(frames, mask, self._dtype)
        clips = normalise(segment_means(frames, lengths, config.num_clips))
        if sizes["T"] > config.max_frames:
            means = segment_means(frames, lengths, config.max_frames)
            long = (lengths > config.max_frames)[:, None, None]
            frames = torch.where(long, means, frames[:, : config.max_frames])
            lengths = lengths.clamp(max=config.max_frames)
        frames = normalise(frames)
        # Without a mask all videos are equally long, and share their windows.
        video = self.encode_frames(frames, None if mask is None else lengths)
        code = VideoCode(self.encode_clips(clips), video)
        if self.projections:
            keep = keep_mask(lengths, frames.shape[1])
            code = VideoCode(
                torch.cat([clips, self.projections["clips"](code.clips)], dim=-1),
                torch.cat([mean_pool(frames, keep), self.projections["video"](code.video)], dim=-1),
            )
        if real is None:
            return code
        return VideoCode(
            torch.where(real[:, None, None], code.clips, 0),
            torch.where(real[:, None], code.video, 0),
        )

    def encode_text(
        self, words: Tensor, word_mask: Tensor | None = None, *, sentence: Tensor | None = None
    ) -> Tensor:
        """Encode sentences.

        Args:
            words: (Q, W, C) features of words, C the text width; of each sentence the first
                `max_words` are read.
            word_mask: (Q, W), True or 1 for a word; None: all are words.
            sentence: (Q, C) features of the sentences, with `residual="concat"` only.

        Returns:
            (Q, D), not normalised, the width of the clips; what is learned is zero for a sentence
            without a word.

        Raises:
            TypeError: A tensor is of the wrong type.
            ValueError: The shapes do not fit, the mask has values other than 0 and 1, or `sentence`
                is missing, or given without `residual="concat"`.
        """
        encoded = self.word_branch(words, word_mask, sentence)
        return self.word_branch.query(encoded, sentence)

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Encode clip features (B, K, C) that are cut and normalised already, to (B, K, D)."""
        return self.clip_branch(clips)

    def encode_frames(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode frame features that are cut and normalised already.

        Args:
            frames: (B, T, C), the real frames first, T at most `max_frames`.
            lengths: (B,) real frames, at least 1 each; None: all.

        Returns:
            (B, D).
        """
        keep = None if lengths is None else keep_mask(lengths, frames.shape[1])
        return self.frame_pool(self.frame_branch(frames, lengths), keep)

    def similarity(
        self, query: Tensor, code: VideoCode, *, clip_weight: float = CLIP_WEIGHT
    ) -> Tensor:
        """Score all pairs.

            weight * max over clips of cos(query, clip) + (1 - weight) * cos(query, video)

        Args:
            query: (Q, D), from `encode_text`.
            code: Of B videos.
            clip_weight: Of the clips against the whole video; 1: the best clip alone.

        Returns:
            (Q, B) in float32 at least.
        """
        clip, frame = pair_cosines(query, code)
        return clip_weight * clip + (1 - clip_weight) * frame

    def fused_similarity(
        self,
        words: Tensor,
        word_mask: Tensor | None,
        code: VideoCode,
        *,
        sentence: Tensor | None = None,
        clip_weight: float = CLIP_WEIGHT,
    ) -> Tensor:
        """Score pairs after temporal fusion (see `TemporalFusion`), for models with `fusion=True`.

        It costs far more than `similarity`, pair by pair, and is meant for reranking a shortlist.

        Args:
            words: (Q, W, C), as in `encode_text`.
            word_mask: (Q, W), or None.
            code: Of B videos, for all pairs; or of the B candidates of each query, clips
                (Q, B, K, D) and videos (Q, B, D).
            sentence: (Q, C), as in `encode_text`.
            clip_weight: As in `similarity`.

        Returns:
            (Q, B) in float32 at least; 0 for a video without a real frame. At first the scores are
            those of `similarity`.

        Raises:
            RuntimeError: The model has no fusion.
            TypeError: As `encode_text`.
            ValueError: As `encode_text`, or candidates are not those of Q queries.
        """
        if self.fusion is None:
            raise RuntimeError("fused_similarity needs a model with fusion=True")
        clips, video = code
        if clips.dim() == 4 and len(clips) != len(words):
            raise ValueError(
                f"candidates must be those of {len(words)} queries, got {len(clips)} groups"
            )
        encoded = self.word_branch(words, word_mask, sentence).for_pairs()
        fused, clips = self.fusion(encoded.tokens, encoded.keep, clips.to(self._dtype))
        query = self.word_branch.query(encoded._replace(tokens=fused), sentence)  # (Q, B, D)
        clip = self.fusion.clip_scores(query, clips).amax(-1)
        frame = (unit(query) * unit(video)).sum(-1)
        scores = clip_weight * clip + (1 - clip_weight) * frame
        return torch.where(video.any(-1), scores, 0)

    def clip_spans(self, num_frames: int) -> Tensor:
        """Return which frames the clips of a video have.

        Args:
            num_frames: T.

        Returns:
            (K, 2) integers: first and last frame of each clip, both inclusive. With more frames
            than clips, the last frame is in none, as published; with fewer, clips share frames.

        Raises:
            ValueError: There is no frame.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        return segment_spans(num_frames, self.config.num_clips)

    def loss(
        self,
        words: Tensor,
        word_mask: Tensor | None,
        frames: Tensor,
        frame_mask: Tensor | None,
        labels: Tensor,
        *,
        sentence: Tensor | None = None,
        **options: Any,
    ) -> MamFusionLoss:
        """Encode a batch of videos with all their sentences, and compute the objective.

        Args:
            words: (Q, W, C), as in `encode_text`.
            word_mask: (Q, W), or None.
            frames: (V, T, C), as in `encode_video`.
            frame_mask: (V, T), or None.
            labels: (Q,) integers, the video of each sentence.
            sentence: (Q, C), as in `encode_text`.
            **options: Of `mamfusion_loss`: `negatives`, `generator`, `weights`, `margin`, `delta`
                and others.

        Returns:
            The total and its parts.

        Raises:
            TypeError: As `encode_video`, `encode_text` and `mamfusion_loss`.
            ValueError: Likewise.
        """
        query = self.encode_text(words, word_mask, sentence=sentence)
        return mamfusion_loss(query, self.encode_video(frames, frame_mask), labels, **options)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all parameters as BERT's, the mixers as Mamba's.

        Linear maps and positions are N(0, 0.02) with zero biases. The published code does this to
        Mamba too, whose steps then have no scale of time.
        """
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        mixers = [module for module in self.modules() if isinstance(module, BiMamba)]
        inside = {id(module) for mixer in mixers for module in mixer.modules()}
        for mixer in mixers:
            mixer.reset_scan()
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and id(module) not in inside:
                nn.init.normal_(module.weight, std=0.02)
            if (
                isinstance(module, nn.Linear)
                and module.bias is not None
                and id(module) not in inside
            ):
                nn.init.zeros_(module.bias)
        if self.fusion is not None:
            self.fusion.zero_init_output()
        for name in ("clips", "video"):
            if name in self.projections:
                nn.init.zeros_(self.projections.get_parameter(f"{name}.weight"))

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that must not decay, apart from biases and norms."""
        return undecayed_parameters(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the video branches in the backward pass: less memory, more time.

        Args:
            enable: False turns it off again.
        """
        self.clip_branch.grad_checkpointing = enable
        self.frame_branch.grad_checkpointing = enable

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the weights (safetensors) and the config (JSON), as `MultiScaleMamba` does.

        Args:
            folder: Created if needed; its files of an earlier save are replaced.

        Raises:
            ImportError: safetensors is not installed.
            OSError: The folder cannot be written.
        """
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> MamFusion:
        """Load a model that `save_pretrained` saved; errors as for `MultiScaleMamba`.

        Args:
            name: A folder, or `owner/name` of a model on the Hugging Face hub.

        Returns:
            The model, in the dtype of the saved weights.
        """
        config, state_dict = load_pretrained(name, MamFusionConfig)
        with torch.device("meta"):  # before memory is taken for what a damaged number asks for
            check_fits(cls(config), state_dict)
        model = cls(config).to(next(iter(state_dict.values())).dtype)
        load_strict(model, state_dict)
        return model

    def extra_repr(self) -> str:
        """Show the settings that the submodules do not show."""
        return f"num_clips={self.config.num_clips}, residual={self.config.residual!r}"

    @property
    def _dtype(self) -> torch.dtype:
        return self.frame_pool.score.weight.dtype
