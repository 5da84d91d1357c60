"""The clips of a run: the rendered corpus, or a person's own folder of videos and captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart.corpus import synthetic_corpus
from examples.quickstart.data import Clip, Part, load_part, read_captions, split
from examples.quickstart.files import ensure_folder
from examples.quickstart.settings import fingerprint

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Material:
    """Decoded clips in three parts that share none.

    Attributes:
        parts: "train", "validation" and "test".
        rendered: whether it is the rendered corpus.
        fingerprint: changes when the clips, their captions or their parts change.
    """

    parts: dict[str, Part]
    rendered: bool
    fingerprint: str

    @property
    def sizes(self) -> dict[str, int]:
        """Clips in each part."""
        return {name: len(part.clips) for name, part in self.parts.items()}


def load_material(
    folder: Path,
    *,
    num_frames: int,
    size: int,
    videos: Path | None = None,
    captions: Path | None = None,
    corpus_sizes: dict[str, int] | None = None,
    progress: bool = True,
) -> Material:
    """Render the corpus, or read own material, and decode it; both are kept in `folder`.

    Args:
        folder: where the rendered corpus and the decoded frames are kept.
        num_frames: frames sampled from a clip.
        size: side of a frame in pixels.
        videos: folder of own videos. None: the rendered corpus.
        captions: CSV of their captions.
        corpus_sizes: clips to render for each part. None: the sizes of `synthetic_corpus`.
        progress: whether to show progress bars.

    Raises:
        ValueError: if own material cannot be read or split, see `read_captions` and `split`.
    """
    ensure_folder(folder)
    if videos is None:
        clips = synthetic_corpus(folder / "corpus", progress=progress, **(corpus_sizes or {}))
    else:
        if captions is None:
            raise ValueError("videos need captions: the path of their CSV")
        # the same parts for every seed of a study
        clips = split(read_captions(captions, videos), seed=0)
    parts = {
        name: load_part(
            clips[name],
            num_frames=num_frames,
            size=size,
            cache=folder / "frames",
            progress=progress,
        )
        for name in PARTS
    }
    return Material(parts, rendered=videos is None, fingerprint=_fingerprint(parts))


def _fingerprint(parts: dict[str, Part]) -> str:
    """Of what the models see, captions and pixels: a file replaced under its name is another."""
    return fingerprint(
        [[_identity(clip) for clip in parts[name].clips] + [_pixels(parts[name])] for name in PARTS]
    )


def _identity(clip: Clip) -> list[str | None]:
    return [clip.id, clip.caption, clip.reversal]


def _pixels(part: Part) -> str:
    digest = hashlib.sha256(part.frames.contiguous().numpy().data)
    digest.update(part.mask.contiguous().numpy().data)
    return digest.hexdigest()
