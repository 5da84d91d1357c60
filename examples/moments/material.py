"""The stages before training, each kept in files: videos, tower, features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from examples.moments.corpus import VERSION, decode, render
from examples.moments.features import Features, encode_split, encode_tokens
from examples.moments.moments import LongVideo, sample_videos
from examples.moments.settings import Corpus, TowerSettings
from examples.moments.tower import Tower, build_tower, load_tower, train_tower
from examples.quickstart.captions import SPLITS
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.settings import fingerprint
from muse_adapter import __version__


@dataclass(frozen=True)
class Material:
    """A rendered corpus and its features.

    Attributes:
        videos: The videos of "train", "validation" and "test".
        features: Their features.
        tower: What made them.
        folder: Where the video files are.
        size: Side of a frame in pixels, as the tower sees it.
        fingerprint: Changes when the corpus or the tower change.
    """

    videos: dict[str, list[LongVideo]]
    features: dict[str, Features]
    tower: Tower
    folder: Path
    size: int
    fingerprint: str


def load_material(
    corpus: Corpus, settings: TowerSettings, folder: Path, *, progress: bool = True
) -> Material:
    """Render the videos, train the tower, encode everything; or take up what is there already.

    Args:
        corpus: What to render.
        settings: Settings of the tower.
        folder: Where all of it is kept.
        progress: Whether to show progress bars.

    Raises:
        ValueError: The corpus cannot have such sizes, or a file in the folder cannot be used.
        ImportError: PyAV is not installed.
        OSError: The folder cannot be written to.
    """
    videos = {name: sample_videos(name, *corpus.draw(name)) for name in SPLITS}
    place = folder / "videos"
    for name in SPLITS:
        render(videos[name], place, name=name, progress=progress)
    training = _Frames(videos["train"], place, corpus.size, progress)
    tower_name = fingerprint(
        [asdict(settings), corpus.draw("train"), corpus.size, VERSION, __version__]
    )
    tower_path = folder / f"tower-{tower_name}.pt"
    if tower_path.is_file():
        tower = load_tower(build_tower(settings, videos["train"], corpus.size), tower_path)
    else:
        tower = train_tower(
            settings, videos["train"], training.read(), tower_path, progress=progress
        )
    features = {}
    for name in SPLITS:
        frames = (
            training if name == "train" else _Frames(videos[name], place, corpus.size, progress)
        )
        path = folder / f"features-{name}-{fingerprint([tower_name, *corpus.draw(name)])}.pt"
        if path.is_file():
            features[name] = Features(**read_tensors(path, Features.__annotations__))
        else:
            features[name] = encode_split(tower, videos[name], frames.read(), progress=progress)
            write_tensors(path, vars(features[name]))
    name = fingerprint([tower_name, asdict(corpus)])
    return Material(videos, features, tower, place, corpus.size, name)


def with_tokens(material: Material, folder: Path, *, progress: bool = True) -> Material:
    """Add the tokens of all frames, of which there are 17 for each class token."""
    if all(features.tokens is not None for features in material.features.values()):
        return material
    features = {}
    for name, split in material.features.items():
        path = folder / f"tokens-{name}-{material.fingerprint}.pt"
        if not path.is_file():
            frames = _Frames(material.videos[name], material.folder, material.size, progress)
            tokens = encode_tokens(material.tower, frames.read(), progress=progress)
            write_tensors(path, {"tokens": tokens})
        features[name] = replace(split, **read_tensors(path, ["tokens"]))
    return replace(material, features=features)


class _Frames:
    """The frames of a split, decoded when they are asked for first."""

    def __init__(self, videos: Sequence[LongVideo], folder: Path, size: int, progress: bool):
        self.videos, self.folder, self.size, self.progress = videos, folder, size, progress
        self.frames: list[Tensor] | None = None

    def read(self) -> list[Tensor]:
        if self.frames is None:
            self.frames = decode(self.videos, self.folder, size=self.size, progress=self.progress)
        return self.frames
