"""The stages before training, each kept in files: videos, tower, features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from examples.moments.corpus import VERSION, render
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
        fingerprint: Changes when the corpus or the weights of the tower change.
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
        RuntimeError: A process that renders was ended or could not start (see `render`).
    """
    videos = {name: sample_videos(name, *corpus.draw(name)) for name in SPLITS}
    place = folder / "videos"
    tower_name = fingerprint(
        [asdict(settings), corpus.draw("train"), corpus.size, VERSION, __version__]
    )
    tower_path = folder / f"tower-{tower_name}.pt"
    frames = None
    if not tower_path.is_file():
        frames = render(videos, place, size=corpus.size, wanted=SPLITS, progress=progress)
        train_tower(settings, videos["train"], frames["train"], tower_path, progress=progress)
    tower = load_tower(build_tower(settings, videos["train"], corpus.size), tower_path)
    # A tower that is trained anew, with other threads for example, has other weights.
    weights = {name: value.tolist() for name, value in tower.state_dict().items()}
    made_by = fingerprint([tower_name, weights])
    paths = {
        name: folder / f"features-{name}-{fingerprint([made_by, *corpus.draw(name)])}.pt"
        for name in SPLITS
    }
    if frames is None:
        wanted = [name for name, path in paths.items() if not path.is_file()]
        frames = render(videos, place, size=corpus.size, wanted=wanted, progress=progress)
    features = {}
    for name, path in paths.items():
        if path.is_file():
            features[name] = Features(**read_tensors(path, Features.__annotations__))
        else:
            features[name] = encode_split(tower, videos[name], frames[name], progress=progress)
            write_tensors(path, vars(features[name]))
    name = fingerprint([made_by, asdict(corpus)])
    return Material(videos, features, tower, place, corpus.size, name)


def with_tokens(
    material: Material, folder: Path, *, splits: Sequence[str] = SPLITS, progress: bool = True
) -> Material:
    """Add the tokens of all frames of some splits, of which there are 17 for each class token."""
    missing = [name for name in splits if material.features[name].tokens is None]
    paths = {name: folder / f"tokens-{name}-{material.fingerprint}.pt" for name in missing}
    videos = {name: material.videos[name] for name in missing}
    wanted = [name for name in missing if not paths[name].is_file()]
    frames = render(videos, material.folder, size=material.size, wanted=wanted, progress=progress)
    features = dict(material.features)
    for name, path in paths.items():
        if not path.is_file():
            tokens = encode_tokens(material.tower, frames[name], progress=progress)
            write_tensors(path, {"tokens": tokens})
        features[name] = replace(features[name], **read_tensors(path, ["tokens"]))
    return replace(material, features=features)
