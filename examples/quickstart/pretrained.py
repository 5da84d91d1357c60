"""A pretrained Hugging Face CLIP from a local folder as both towers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from examples.quickstart.files import read_json
from examples.quickstart.model import QuickstartModel, build_head, build_objective
from examples.quickstart.settings import Settings
from muse_adapter import VideoEncoder

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def import_transformers() -> Any:
    """Import the transformers package.

    Raises:
        ImportError: It is not installed; the message has the line that installs it.
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
    """Read the config of a CLIP folder.

    Raises:
        FileNotFoundError: The folder has no config.json.
        ValueError: It is not a CLIP.
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
    """Read side of the frames, mean and std of the colours, as the folder's own processor has them.

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
        folder: The folder.
    """

    def __init__(self, folder: str) -> None:
        self._tokenizer = import_transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        text = read_config(folder).get("text_config", {})
        self.max_tokens = text.get("max_position_embeddings", 77)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize texts: int64 (len(texts), L).

        The tower is causal and reads the end token: no mask is needed.
        """
        return self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).input_ids

    def state(self) -> dict:
        """Return nothing: everything stands in the folder."""
        return {}

    def warnings(self, text: str) -> list[str]:
        """Say so if the query is too long."""
        count = len(self._tokenizer(text).input_ids)
        if count > self.max_tokens:
            return [f"only the first {self.max_tokens} of {count} tokens are read"]
        return []


def load_clip(settings: Settings) -> QuickstartModel:
    """Load a CLIP from `settings.backbone`, with a new head between the frames and the embedding.

    Args:
        settings: Settings of the run; `size` must be the one `read_preprocessing` gives.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: The folder is none, or has no weights in safetensors.
        ValueError: It is not a CLIP.
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
    encoder = VideoEncoder(clip, head, freeze=not settings.train_backbone)
    objective = build_objective(
        settings.objective, dim=clip.config.projection_dim, num_frames=settings.num_frames
    )
    model = QuickstartModel(encoder, clip, **objective, mean=mean, std=std)
    # It learns beside frozen towers too: the head changes how far apart the embeddings lie.
    model.logit_scale.requires_grad_()
    return model
