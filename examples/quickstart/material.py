"""The clips of a run: the rendered corpus, or one's own folder of videos and captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart.captions import SPLITS, Clip, read_captions, split_clips
from examples.quickstart.corpus import synthetic_corpus
from examples.quickstart.files import ensure_folder
from examples.quickstart.settings import fingerprint
from examples.quickstart.splits import Split, load_split


@dataclass(frozen=True)
class Material:
    """Decoded clips in three splits that share none.

    Attributes:
        splits: "train", "validation" and "test".
        rendered: Whether it is the rendered corpus.
        fingerprint: Changes when the clips, their captions or their splits change.
    """

    splits: dict[str, Split]
    rendered: bool
    fingerprint: str

    @property
    def sizes(self) -> dict[str, int]:
        """Clips in each split."""
        return {name: len(split.clips) for name, split in self.splits.items()}


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
        folder: Where the rendered corpus and the decoded frames are kept.
        num_frames: Frames sampled from a clip.
        size: Side of a frame in pixels.
        videos: Folder of own videos. None: the rendered corpus.
        captions: CSV of their captions.
        corpus_sizes: Clips to render for each split. None: the sizes of `synthetic_corpus`.
        progress: Whether to show progress bars.

    Raises:
        ValueError: Own material cannot be read or split, see `read_captions` and `split_clips`.
    """
    ensure_folder(folder)
    if videos is None:
        clips = synthetic_corpus(folder / "corpus", progress=progress, **(corpus_sizes or {}))
    else:
        if captions is None:
            raise ValueError("videos need captions: the path of their CSV")
        # the same splits for every seed of a study
        clips = split_clips(read_captions(captions, videos), seed=0)
    splits = {
        name: load_split(
            clips[name],
            num_frames=num_frames,
            size=size,
            cache=folder / "frames",
            progress=progress,
        )
        for name in SPLITS
    }
    return Material(splits, rendered=videos is None, fingerprint=_fingerprint(splits))


def _fingerprint(splits: dict[str, Split]) -> str:
    """Digest what the models see, captions and pixels: a file replaced under its name counts."""
    return fingerprint(
        [
            [_identity(clip) for clip in splits[name].clips] + [_pixels(splits[name])]
            for name in SPLITS
        ]
    )


def _identity(clip: Clip) -> list[str | None]:
    return [clip.id, clip.caption, clip.reversal]


def _pixels(split: Split) -> str:
    digest = hashlib.sha256(split.frames.contiguous().numpy().data)
    digest.update(split.mask.contiguous().numpy().data)
    return digest.hexdigest()
