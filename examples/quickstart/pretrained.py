"""A pretrained Hugging Face CLIP from a local folder as both towers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from examples.quickstart.files import read_json
from examples.quickstart.heads import build_head
from examples.quickstart.model import DualEncoder
from examples.quickstart.settings import Settings
from muse_adapter import VideoEncoder

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def import_transformers() -> Any:
    """The transformers package.

    Raises:
        ImportError: with the line that installs it.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "a pretrained backbone needs transformers and safetensors: "
            "pip install transformers safetensors"
        ) from error
    return transformers


def _read_json(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def read_config(folder: str) -> dict:
    """The config of a CLIP folder.

    Raises:
        FileNotFoundError: if the folder has no config.json.
        ValueError: if it is not a CLIP.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"--backbone expects the folder of a Hugging Face CLIP: no {path}")
    config = _read_json(path)
    if config.get("model_type") != "clip":
        raise ValueError(
            f"--backbone expects a CLIP (model_type 'clip'), {path} is of type "
            f"{config.get('model_type')!r}"
        )
    return config


def read_preprocessing(folder: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side of the frames, mean and std of the colours, as the folder's own processor has them.

    Folders without a processor get the size of the config and the numbers of OpenAI's CLIP,
    which are the defaults of Hugging Face's processor too.
    """
    config = read_config(folder)
    processor = _read_json(Path(folder) / "preprocessor_config.json") or _read_json(
        Path(folder) / "processor_config.json"
    ).get("image_processor", {})
    side = config.get("vision_config", {}).get("image_size", 224)
    mean = tuple(processor.get("image_mean", CLIP_MEAN))
    std = tuple(processor.get("image_std", CLIP_STD))
    return side, mean, std


class ClipTokenizer:
    """The tokenizer of a CLIP folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: str) -> None:
        self._tokenizer = import_transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        text = read_config(folder).get("text_config", {})
        self.max_tokens = text.get("max_position_embeddings", 77)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 (len(texts), L). The tower is causal and reads the end token: no mask is needed."""
        return self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).input_ids

    def state(self) -> dict:
        """Empty: everything stands in the folder."""
        return {}

    def warnings(self, text: str) -> list[str]:
        """A sentence if the query is too long."""
        count = len(self._tokenizer(text).input_ids)
        if count > self.max_tokens:
            return [f"only the first {self.max_tokens} of {count} tokens are read"]
        return []


class ClipText(nn.Module):
    """The text tower of a CLIPModel with its projection."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.text_model = clip.text_model
        self.text_projection = clip.text_projection

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (B, L) to (B, D), not normalised."""
        return self.text_projection(self.text_model(input_ids=ids).pooler_output)


class ClipVision(nn.Module):
    """The vision tower of a CLIPModel with its projection, under the names `VideoEncoder` knows."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.vision_model = clip.vision_model
        self.visual_projection = clip.visual_projection


def load_clip(settings: Settings) -> DualEncoder:
    """Both towers from `settings.backbone`, with a new head between the frames and the embedding.

    Args:
        settings: of the run; `size` must be the one `read_preprocessing` gives.

    Raises:
        ImportError: if transformers is missing.
        FileNotFoundError: if the folder is none, or has no weights in safetensors.
        ValueError: if it is not a CLIP.
    """
    folder = settings.backbone
    assert folder is not None
    _, mean, std = read_preprocessing(folder)
    transformers = import_transformers()
    if not any(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(f"--backbone expects weights in safetensors: none in {folder}")
    clip = transformers.CLIPModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    ).float()
    head = build_head(
        settings.head,
        dim=clip.config.projection_dim,
        depth=settings.depth,
        num_frames=settings.num_frames,
    )
    return DualEncoder(
        ClipText(clip),
        VideoEncoder(ClipVision(clip), head, freeze=not settings.train_backbone),
        mean=mean,
        std=std,
        logit_scale=clip.logit_scale.item(),
        frozen=() if settings.train_backbone else ("text", "video.backbone"),
    )
