"""VideoTransformer: text, images and videos in the same space, as a module of that library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from muse_adapter.data.video.sampling import Sampling
from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.models.muse import MultiScaleMamba
from muse_adapter.sentence_transformers.backbone import Backbone, load_backbone
from muse_adapter.sentence_transformers.inputs import batch_frames, parse_inputs
from muse_adapter.sentence_transformers.model_card import describe
from muse_adapter.sentence_transformers.pixels import FrameInputs
from muse_adapter.sentence_transformers.scoring import score_frames
from muse_adapter.sentence_transformers.texts import TextInputs, text_features
from muse_adapter.sentence_transformers.videos import video_features

HEAD_FOLDER = "muse_head"
TOKENIZER_KEYS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class VideoTransformer(InputModule):
    """Embed texts, images and videos with a Hugging Face model of two towers and a video head.

    It gives `sentence_embedding` (B, D), of unit norm, and `token_embeddings` (B, L, D) with their
    `attention_mask` (B, L): the fused frames of videos, the words of texts, of unit norm too.

    Args:
        model_name_or_path: A name on the Hugging Face hub, a folder, or the model itself with its
            `processor`. CLIP, SigLIP, SigLIP 2 and models of their structure.
        processor: The processor of a model that is given itself.
        head: The video head. None: a new one with the default settings for this model.
        num_frames: Largest number T of frames that are sampled from a video.
        fps: Frames per second to sample from, see `read_frames`; CLIP4Clip samples with 1. None:
            from every frame of the video.
        freeze: Whether the model (not the head) gets no gradient and stays in evaluation mode.
        skip_unreadable: Whether a video that cannot be read gets a zero embedding and a warning
            instead of an error.
        **loading: Of `load_backbone`: `revision`, `token`, `cache_folder`, `model_kwargs`, …

    Raises:
        TypeError: The model has no text tower, or `head` is no `MultiScaleMamba`.
        ValueError: Frames of the head and texts differ in width, or a setting is out of range.
    """

    config_file_name = "video_transformer_config.json"
    forward_kwargs: ClassVar[set[str]] = {"output_levels"}
    config_keys: ClassVar[list[str]] = [
        *("num_frames", "fps", "freeze", "skip_unreadable", "max_seq_length")
    ]

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | nn.Module,
        *,
        processor: Any = None,
        head: MultiScaleMamba | None = None,
        num_frames: int = 12,
        fps: float | None = None,
        freeze: bool = False,
        skip_unreadable: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__()
        Sampling(num_frames, fps=fps)  # checks both
        if isinstance(model_name_or_path, nn.Module):
            if processor is None or loading:
                raise TypeError(
                    "a model that is given itself needs its processor=, and takes no "
                    f"{', '.join(loading) or 'name'}"
                )
            backbone = Backbone(model_name_or_path, processor)
        elif processor is not None:
            raise TypeError("a model that is given by name is loaded with its own processor")
        else:
            backbone = load_backbone(model_name_or_path, **loading)
        if head is not None and not isinstance(head, MultiScaleMamba):
            raise TypeError(f"head must be a MultiScaleMamba or None, got {type(head).__name__}")
        self.text_inputs = TextInputs(backbone)
        self.frame_inputs = FrameInputs(backbone)
        self.encoder = VideoEncoder(backbone.model, head, freeze=freeze)
        if self.encoder.head.config.dim != self.text_inputs.width:
            raise ValueError(
                f"the texts of this model have width {self.text_inputs.width}, so the head must be "
                f"MultiScaleMamba(dim={self.text_inputs.width}, in_dim=…), got dim="
                f"{self.encoder.head.config.dim}"
            )
        self.processor = backbone.processor
        self.base_model = backbone.base_model
        self.base_model_revision = backbone.base_model_revision
        self.num_frames = num_frames
        self.fps = fps
        self.skip_unreadable = skip_unreadable
        self._places: list[tuple[str, str | None]] = []
        self._max_seq_length = self.text_inputs.max_length

    @property
    def modalities(self) -> list[Any]:
        """What an input may be; a message has one content."""
        return ["text", "image", "video", "message"]

    @property
    def saved_in(self) -> tuple[str, str | None] | None:
        """Where the model was saved or loaded from last: a folder, or a hub name and its commit.

        None if it never was. Folders that are gone do not count: an upload saves to such a one.
        """
        there = [p for p in self._places if not os.path.isabs(p[0]) or os.path.isdir(p[0])]
        return there[-1] if there else None

    @property
    def head(self) -> MultiScaleMamba:
        """The video head."""
        return self.encoder.head

    @property
    def freeze(self) -> bool:
        """Whether the model beside the head is frozen."""
        return self.encoder.frozen

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the texts."""
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processor.tokenizer = tokenizer

    @property
    def max_seq_length(self) -> int:
        """Texts are cut to this many tokens."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        full, longest = self.text_inputs.full_length, self.text_inputs.max_length
        if full is not None and length != full:
            raise ValueError(f"this model was trained with texts padded to {full} tokens")
        if not 1 <= length <= longest:
            raise ValueError(f"max_seq_length must be in 1..{longest}, got {length}")
        self._max_seq_length = length

    def get_embedding_dimension(self) -> int:
        """Return the width D of all embeddings."""
        return self.head.config.dim

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        *,
        processing_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Tokenize texts, or sample and preprocess the frames of videos and images.

        Args:
            inputs: Texts, or videos and images, in any form that sentence-transformers takes.
            prompt: Put in front of texts.
            processing_kwargs: `{"video": {...}}` for this call alone: `num_frames`, `fps`, `start`
                and `end` in seconds, `skip_unreadable`.
            max_length: Texts are cut to this many tokens (None: to `max_seq_length`).
            **kwargs: Of other modules; not used.

        Returns:
            For texts `input_ids`, `attention_mask` and `word_mask`, (B, L); for videos and images
            `pixel_values_videos` (B, T, 3, height, width) and `attention_mask` (B, T).

        Raises:
            UnreadableVideos: Some videos cannot be read; names them all.
            ValueError: An input or an option is none that this module takes.
        """
        if not inputs:
            return {}
        kinds, contents = parse_inputs(inputs)
        if kinds[0] == "text":
            texts = [prompt + text for text in contents] if prompt else contents
            length = min(max_length or self.max_seq_length, self.max_seq_length)
            tokens = self.text_inputs.tokenize(self.tokenizer, texts, length)
            return {**tokens, "modality": "text"}
        options: dict[str, Any] = {
            "num_frames": self.num_frames,
            "fps": self.fps,
            "start": None,
            "end": None,
            "skip_unreadable": self.skip_unreadable,
        }
        given = dict((processing_kwargs or {}).get("video", {}))
        if unknown := set(given) - set(options):
            raise ValueError(
                f"unknown processing_kwargs of a video: {', '.join(sorted(unknown))}; known are "
                f"{', '.join(options)}"
            )
        options |= given
        skip = options.pop("skip_unreadable")
        videos = batch_frames(kinds, contents, Sampling(**options), skip_unreadable=skip)
        frames, mask = self.frame_inputs.pad(videos)
        return {"pixel_values_videos": frames, "attention_mask": mask, "modality": "video"}

    def forward(
        self, features: dict[str, Any], *, output_levels: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Embed what `preprocess` gives.

        Args:
            features: Of texts, or of videos and images.
            output_levels: Whether videos get `cls_embeddings` (B, T, D), `frame_embeddings`
                (B, T, D) and `patch_embeddings` (B, T, P, D) too, which scorers such as `EERCF`
                compare; see `VideoEncoder.forward_levels`.
            **kwargs: Of other modules; not used.

        Returns:
            The features but for the frames, with `sentence_embedding` (B, D), `token_embeddings`
            (B, L, D) and their `attention_mask` (B, L). Without frames an embedding is zero.
        """
        mask = features["attention_mask"]
        levels: dict[str, Tensor] = {}
        if "pixel_values_videos" in features:
            embedding, tokens, levels = video_features(
                self.encoder, features["pixel_values_videos"], mask, output_levels=output_levels
            )
        else:
            text = {key: features[key] for key in TOKENIZER_KEYS if key in features}
            if self.text_inputs.full_length is not None:
                del text["attention_mask"]
            embedding, tokens = text_features(self.encoder.backbone, text)
            mask = features.get("word_mask", mask)
        # Frames are large, and an evaluation would keep them for all videos.
        return {
            **{name: value for name, value in features.items() if name != "pixel_values_videos"},
            **levels,
            "sentence_embedding": _unit(embedding),
            "token_embeddings": _unit(tokens),
            "attention_mask": mask,
        }

    def score_frames(self, query: Tensor, frames: Sequence[Tensor]) -> Tensor:
        """Score videos (K,) for the second stage of a search, see `scoring.score_frames`."""
        return score_frames(query, frames)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute activations in the backward pass, in the head and in the model."""
        self.encoder.set_grad_checkpointing()

    def on_model_ready(self, model: Any) -> None:
        """Fill in the model card of the model that this module is part of."""
        describe(model, self)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings, and where the weights of the model came from."""
        origin = {"base_model": self.base_model, "base_model_revision": self.base_model_revision}
        return {**{key: getattr(self, key) for key in self.config_keys}, **origin}

    def __repr__(self) -> str:
        """Show the model, the head and the settings, as in the model card."""
        settings = {key: getattr(self, key) for key in self.config_keys}
        listed = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        name = type(self.encoder.backbone).__name__
        return f"VideoTransformer({name}, {listed}, head={self.head.config})"

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the model and its processor as transformers does, the head beside them.

        Args:
            output_path: The folder.
            *args: Not used.
            **kwargs: Not used.
        """
        model: Any = self.encoder.backbone
        model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.head.save_pretrained(Path(output_path) / HEAD_FOLDER)
        self.save_config(output_path)
        self._places.append((os.path.abspath(output_path), None))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        *,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        backend: str = "torch",
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> VideoTransformer:
        """Load what `save` saved, all of one revision.

        Code of the repository is never run, also not with that library's `trust_remote_code`.
        """
        if backend != "torch":
            raise ValueError(f'the backend of a VideoTransformer is "torch", got {backend!r}')
        hub: dict[str, Any] = {
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        settings = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        part = "/".join(filter(None, (subfolder, HEAD_FOLDER)))
        folder = cls.load_dir_path(model_name_or_path, subfolder=part, **hub)
        if not settings or folder is None:
            raise FileNotFoundError(
                f"{model_name_or_path!r} holds no {cls.config_file_name} and {HEAD_FOLDER}"
            )
        origin = {key: settings.pop(key) for key in ("base_model", "base_model_revision")}
        max_seq_length = settings.pop("max_seq_length")
        module = cls(
            model_name_or_path,
            head=MultiScaleMamba.from_pretrained(folder),
            subfolder=subfolder,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            **settings,
            **hub,
        )
        module.max_seq_length = max_seq_length
        place = model_name_or_path, module.base_model_revision or revision
        if os.path.isdir(model_name_or_path):
            place = os.path.abspath(model_name_or_path), None
        module._places.append(place)
        module.base_model = origin["base_model"]
        module.base_model_revision = origin["base_model_revision"]
        return module


# Saved models name the class by this path: it does not change with the files of this package.
VideoTransformer.__module__ = "muse_adapter.sentence_transformers"


def _unit(vectors: Tensor) -> Tensor:
    """Normalise (..., D), in float32 at least."""
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return F.normalize(vectors.to(wide), dim=-1)
