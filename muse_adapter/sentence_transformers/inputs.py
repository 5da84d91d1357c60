"""What each input of a batch is, and the frames of all its videos and images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sentence_transformers.base.modality import infer_modality, is_message_dict
from torch import Tensor

from muse_adapter.data.video.container import VIDEO_SUFFIXES
from muse_adapter.data.video.sampling import Sampling
from muse_adapter.sentence_transformers.frames import image_frame, video_frames

Kind = Literal["text", "image", "video"]
KINDS: tuple[Kind, ...] = ("text", "image", "video")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
SUFFIXES: dict[Kind, tuple[str, ...]] = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}


class UnreadableVideos(ValueError):
    """Videos or images of a batch that cannot be read.

    Attributes:
        reasons: The reason of each, by its path, or by its position in the batch where it has none.
    """

    def __init__(self, reasons: Mapping[str, str], batch_size: int) -> None:
        lines = [f"  {name}: {reason}" for name, reason in reasons.items()]
        super().__init__("\n".join([f"cannot read {len(reasons)} of {batch_size} videos:", *lines]))
        self.reasons = dict(reasons)
        self._arguments = self.reasons, batch_size

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, for the worker processes of data loaders and of `encode`."""
        return type(self), self._arguments


def parse_inputs(inputs: Sequence[Any]) -> tuple[list[Kind], list[Any]]:
    """Tell texts, images and videos apart, as sentence-transformers does.

    A string that ends like a file of a video or an image, and looks like a path, is one, also where
    there is no such file: it is then reported as missing, not embedded as a text. It looks like one
    if it has no spaces, begins like a path, or names a folder that exists; a caption does none of
    these. `{"text": "..."}` is always a text.

    Args:
        inputs: A batch in the forms of that library: strings, paths, arrays, images, mappings from
            a modality to its content, chat messages with one content.

    Returns:
        The kind of each input, and its content.

    Raises:
        ValueError: An input has no such form, or combines several contents.
    """
    parsed = [_parse(content) for content in inputs]
    kinds = [kind for kind, _ in parsed]
    if "text" in kinds and len(set(kinds)) > 1:
        raise ValueError(
            "a batch holds texts, or videos and images, not both: encode the texts in a call of "
            "their own"
        )
    return kinds, [content for _, content in parsed]


def batch_frames(
    kinds: Sequence[Kind], contents: Sequence[Any], sampling: Sampling, *, skip_unreadable: bool
) -> list[list[Tensor]]:
    """Sample the frames of all videos of a batch; an image is a video of one frame.

    Args:
        kinds: "video" or "image", for each.
        contents: Each in one of its forms.
        sampling: Which frames of a video.
        skip_unreadable: Whether a video that cannot be read gives no frames and a warning.

    Returns:
        Frames (3, height, width), uint8, of each.

    Raises:
        UnreadableVideos: Some cannot be read, and `skip_unreadable` is False; names them all.
    """
    frames: list[list[Tensor]] = []
    reasons: dict[str, str] = {}
    for number, (kind, content) in enumerate(zip(kinds, contents, strict=True)):
        try:
            one = [image_frame(content)] if kind == "image" else video_frames(content, sampling)
        except (ValueError, OSError) as error:
            one = []
            reasons[_name(content, number)] = str(error)
        frames.append(one)
    if reasons:
        unreadable = UnreadableVideos(reasons, len(contents))
        if not skip_unreadable:
            raise unreadable
        warnings.warn(f"{unreadable}\nTheir embeddings are zero", stacklevel=2)
    return frames


def _parse(content: Any) -> tuple[Kind, Any]:
    if is_message_dict(content):
        content = [content]
    if isinstance(content, list) and content and is_message_dict(content[0]):
        content = _content_of_message(content)
    if isinstance(content, Mapping) and len(content) == 1:
        (kind, inner), *_ = content.items()
        if kind in KINDS:
            if kind == "text" and not isinstance(inner, str):
                raise ValueError(f"expected one text, got {type(inner).__name__}")
            return kind, inner
    if isinstance(content, Mapping) and set(content) <= {"text", "image", "video", "audio"}:
        raise ValueError(
            f"an input has one content, text, image or video, got {', '.join(content) or 'none'}"
        )
    if isinstance(content, os.PathLike):
        image = os.fspath(content).lower().endswith(IMAGE_SUFFIXES)
        return ("image" if image else "video"), content
    if isinstance(content, (list, tuple)) and content and not isinstance(content[0], str):
        return "video", content  # its frames
    if hasattr(content, "get_frames_at"):
        return "video", content
    kind = infer_modality(content, list(KINDS))
    if kind == "text" and isinstance(content, str):
        kind = _kind_of_string(content)
    if kind not in KINDS or (kind == "text" and not isinstance(content, str)):
        raise ValueError(f"expected a text, an image or a video, got {kind} {_form(content)}")
    return kind, content


def _kind_of_string(text: str) -> Kind:
    """Tell the path of a missing file from a text, which may end with the name of one."""
    for kind, suffixes in SUFFIXES.items():
        if text.lower().endswith(suffixes):
            if _looks_like_a_path(text):
                return kind
            warnings.warn(
                f"{text!r} is embedded as a text, and there is no such file: pass "
                f'{{"{kind}": path}} where it is one',
                stacklevel=2,
            )
    return "text"


def _looks_like_a_path(text: str) -> bool:
    one_word = not any(character.isspace() for character in text)
    begins = text.startswith(("./", "../", "~", ".\\", "..\\")) or os.path.isabs(text)
    return one_word or begins or os.path.isdir(os.path.dirname(text))


def _content_of_message(messages: Sequence[Mapping[str, Any]]) -> Any:
    """Return the only content of a chat.

    Raises:
        ValueError: It has several, or none.
    """
    parts = messages[0]["content"] if len(messages) == 1 else None
    if isinstance(parts, str):
        return {"text": parts}
    if not isinstance(parts, (list, tuple)) or len(parts) != 1:
        raise ValueError("a message must be a single one, with one content: text, image or video")
    kind = parts[0].get("type")
    if kind not in parts[0]:
        raise ValueError(f"the content of a message must stand under its type, got {parts[0]}")
    return {kind: parts[0][kind]}


def _name(content: Any, number: int) -> str:
    if isinstance(content, Mapping):
        content = content.get("array", content)
    if isinstance(content, (str, os.PathLike)):
        return os.fspath(content)
    return f"number {number} of the batch ({_form(content)})"


def _form(content: Any) -> str:
    shape = getattr(content, "shape", None)
    return type(content).__name__ + ("" if shape is None else f" {tuple(shape)}")
