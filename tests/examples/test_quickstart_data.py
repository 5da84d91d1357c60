"""The data side of the quickstart: captions, the rendered corpus, decoded parts, the picture."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

np = pytest.importorskip("numpy", reason="rendering clips needs numpy")
pytest.importorskip("tqdm", reason="the quickstart needs tqdm")

from examples.quickstart import corpus as corpus_module  # noqa: E402
from examples.quickstart import data as data_module  # noqa: E402
from examples.quickstart.contact_sheet import contact_sheet, strip_of  # noqa: E402
from examples.quickstart.corpus import synthetic_corpus  # noqa: E402
from examples.quickstart.data import Clip, load_part, read_captions, split  # noqa: E402
from examples.quickstart.drawing import SIDE, draw_scene  # noqa: E402
from examples.quickstart.scenes import (  # noqa: E402
    BYSTANDER_SHARE,
    COUPLES,
    DIRECTIONS,
    OPPOSITE,
    QUERY,
    RELATIONS,
    TWO_STEPS,
    TWO_STEPS_SHARE,
    Scene,
    Thing,
    parse_caption,
    sample_pairs,
)

SIZES = {"train": 12, "validation": 4, "test": 8}
RED, BLUE = Thing("small", "red", "circle"), Thing("large", "blue", "square")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Clip]]]:
    pytest.importorskip("av", reason="rendering clips needs PyAV: muse-adapter[video]")
    folder = tmp_path_factory.mktemp("corpus")
    return folder, synthetic_corpus(folder, **SIZES, progress=False)


# Scenes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "caption", "turned"),
    [
        pytest.param(
            Scene(RED, ("left",), "above", BLUE),
            "a small red circle moves left above a large blue square",
            "a small red circle moves right above a large blue square",
            id="one_step",
        ),
        pytest.param(
            Scene(RED, ("left", "up"), "below", BLUE),
            "a small red circle moves left and then up below a large blue square",
            "a small red circle moves down and then right below a large blue square",
            id="two_steps",
        ),
        pytest.param(
            Scene(RED, ("up",), "below", BLUE, bystander=Thing("small", "green", "circle")),
            "a small red circle moves up below a large blue square "
            "while a small green circle stands still",
            "a small red circle moves down below a large blue square "
            "while a small green circle stands still",
            id="bystander",
        ),
    ],
)
def test_captions_and_their_reversals(scene: Scene, caption: str, turned: str) -> None:
    assert scene.caption == caption
    assert scene.reversed().caption == turned
    assert scene.reversed().reversed() == scene


def test_the_query_of_the_readme_is_of_the_grammar() -> None:
    assert parse_caption(QUERY) == Scene(RED, ("left",), "above", BLUE)
    assert parse_caption(QUERY).caption == QUERY


def test_a_bystander_makes_no_other_meaning() -> None:
    with_it = Scene(RED, ("left",), "above", BLUE, bystander=Thing("small", "green", "circle"))
    assert with_it.meaning() == Scene(RED, ("left",), "above", BLUE).meaning()
    assert with_it.meaning() != with_it.reversed().meaning()


def test_sampled_scenes_differ_in_meaning_and_balance_the_directions() -> None:
    taken: set = set()
    pairs = sample_pairs(150, np.random.default_rng(0), taken)
    scenes = [scene for pair in pairs for scene in pair]
    assert len({scene.meaning() for scene in scenes}) == len(taken) == len(scenes) == 300
    steps = Counter(step for scene in scenes for step in scene.motion)
    assert all(steps[step] == steps[OPPOSITE[step]] for step in DIRECTIONS)
    assert min(steps.values()) > 0.2 * sum(steps.values())
    assert min(Counter(scene.relation for scene in scenes).values()) > 0.2 * len(scenes)
    assert all(scene.bystander is None or scene.bystander.size == "small" for scene in scenes)
    colours = [[thing.colour for thing in scene.things] for scene in scenes]
    assert all(len(set(of_scene)) == len(of_scene) for of_scene in colours)


def test_training_scenes_may_repeat_each_other_but_nothing_that_is_taken() -> None:
    taken: set = set()
    held_out = sample_pairs(100, np.random.default_rng(0), taken)
    before = set(taken)
    pairs = sample_pairs(2000, np.random.default_rng(1), taken, repeat=True)
    meanings = [scene.meaning() for pair in pairs for scene in pair]
    assert taken == before and not before & set(meanings)
    assert len(set(meanings)) < len(meanings) == 4000 and len(held_out) == 100


def test_a_scene_that_is_taken_is_refused_as_the_first() -> None:
    scene = Scene(RED, ("left",), "above", BLUE)
    with pytest.raises(ValueError, match="taken: a small red circle moves left above"):
        sample_pairs(2, np.random.default_rng(0), {scene.meaning()}, first=scene)


def test_more_scenes_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"found \d+ of 1300 pairs; there are hardly any more"):
        sample_pairs(1300, np.random.default_rng(0), set())  # 108 couples, 2 relations, 6 pairs


def test_couples_can_be_told_apart() -> None:
    assert (RED, BLUE) in COUPLES
    assert len(COUPLES) == len(set(COUPLES)) == 12 * 9
    assert all(one.colour != other.colour for one, other in COUPLES)
    assert {(one.size, other.size) for one, other in COUPLES} == {("small", "large")}


# Drawing ------------------------------------------------------------------------------------------


def centre_of(frame: np.ndarray, channel: int) -> tuple[float, float, float]:
    """Centre (x, y) and width of what stands out in one colour channel."""
    picture = frame.astype(int)
    others = np.delete(picture, channel, axis=-1).max(axis=-1)
    rows, columns = np.nonzero(picture[..., channel] - others > 60)
    return float(columns.mean()), float(rows.mean()), float(np.ptp(columns)) + 1


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_clip_shows_what_its_caption_says(relation: str) -> None:
    """Measured in the pixels: relation in every frame, direction of every step, sizes."""
    for number, motion in enumerate([*((step,) for step in DIRECTIONS), *TWO_STEPS]):
        mover = Thing("small", "red", ("circle", "square", "triangle")[number % 3])
        other = Thing("large", "blue", ("circle", "square", "triangle")[number % 2])
        scene = Scene(mover, motion, relation, other)
        video = draw_scene(scene, np.random.default_rng([7, number]))
        assert video.dtype == np.uint8 and video.shape[1:] == (SIDE, SIDE, 3)
        assert 5 <= len(video) <= 24
        red = np.array([centre_of(frame, 0) for frame in video])
        blue = np.array([centre_of(frame, 2) for frame in video])

        sign = 1 if relation == "above" else -1
        assert (sign * (blue - red)[:, 1] > 8).all(), scene.caption
        assert np.abs(blue[:, :2] - blue[0, :2]).max() < 0.5, scene.caption
        moved = red[-1, :2] - red[0, :2]
        expected = np.zeros(2)
        for step in motion:
            expected += {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[step]
        assert (np.sign(np.where(np.abs(moved) < 3, 0, moved)) == expected).all(), scene.caption
        assert (np.abs(moved[expected != 0]) > 5).all(), scene.caption
        if len(motion) == 2:  # a third of the way the first step is under way, the second is not
            early = np.abs(red[max(1, len(video) // 3), :2] - red[0, :2])
            along = 0 if motion[0] in ("left", "right") else 1
            assert early[along] > 3 > early[1 - along], scene.caption
        assert 9 < red[:, 2].max() < 15 < blue[:, 2].min() < 23, scene.caption


def test_lengths_vary_and_some_clips_are_short() -> None:
    lengths = [
        len(draw_scene(Scene(RED, ("left",), "above", BLUE), np.random.default_rng(i)))
        for i in range(150)
    ]
    assert 0.05 < np.mean(np.array(lengths) < 8) < 0.3
    assert len(set(lengths)) > 12 and min(lengths) >= 5 and max(lengths) <= 24


def test_clips_of_one_caption_differ() -> None:
    scene = Scene(RED, ("left",), "above", BLUE)
    videos = [draw_scene(scene, np.random.default_rng(i)) for i in (1, 2, 1)]
    assert np.array_equal(videos[0], videos[2])
    assert not np.array_equal(videos[0][0], videos[1][0])


# Corpus -------------------------------------------------------------------------------------------


def test_corpus_has_parts_that_share_no_caption(rendered: tuple) -> None:
    _, parts = rendered
    assert {part: len(clips) for part, clips in parts.items()} == SIZES
    captions = {part: {clip.caption for clip in clips} for part, clips in parts.items()}
    assert len(captions["test"]) == SIZES["test"]
    assert len(captions["validation"]) == SIZES["validation"]
    assert sum(map(len, captions.values())) == len(set().union(*captions.values()))
    assert len({clip.id for clips in parts.values() for clip in clips}) == sum(SIZES.values())
    assert parts["test"][0].caption == QUERY
    assert all(clip.path.is_file() for clips in parts.values() for clip in clips)


def test_every_part_consists_of_pairs(rendered: tuple) -> None:
    _, parts = rendered
    for clips in parts.values():
        by_id = {clip.id: clip for clip in clips}
        assert all(by_id[clip.reversal].reversal == clip.id for clip in clips)
        assert all(clip.reversal != clip.id for clip in clips)


def test_full_size_parts_share_no_meaning() -> None:
    sizes = {"test": 200, "validation": 100, "train": 2000}
    parts = corpus_module._sample_parts(0, sizes)
    meanings = {
        part: [scene.meaning() for pair in pairs for scene in pair.scenes]
        for part, pairs in parts.items()
    }
    assert {part: len(values) for part, values in meanings.items()} == sizes
    for part in ("test", "validation"):
        assert len(set(meanings[part])) == sizes[part]
    train_scenes = [scene for pair in parts["train"] for scene in pair.scenes]
    two_steps = sum(len(scene.motion) == 2 for scene in train_scenes)
    bystanders = sum(scene.bystander is not None for scene in train_scenes)
    assert abs(two_steps / sizes["train"] - TWO_STEPS_SHARE) < 0.05
    assert abs(bystanders / sizes["train"] - BYSTANDER_SHARE) < 0.05
    test, validation, train = (set(values) for values in meanings.values())
    assert not test & validation and not test & train and not validation & train


@pytest.mark.parametrize("num_frames", [4, 8, 16], ids="T{}".format)
def test_pooling_without_order_cannot_tell_a_pair_apart(rendered: tuple, num_frames: int) -> None:
    _, parts = rendered
    part = load_part(parts["test"], num_frames=num_frames, size=32, cache=None, progress=False)
    row = {clip.id: i for i, clip in enumerate(part.clips)}
    for i, clip in enumerate(part.clips):
        other = row[clip.reversal]
        assert torch.equal(part.mask[i], part.mask[other])
        own, turned = part.frames[i][part.mask[i]], part.frames[other][part.mask[other]].flip(0)
        # Each frame is coded by itself with a fixed quantiser, so nothing but the order differs.
        assert (own.int() - turned.int()).abs().max() <= 1
        assert (own.int() - turned.flip(0).int()).abs().max() > 40, "the order must matter"


def test_files_are_close_to_what_was_drawn(rendered: tuple) -> None:
    av = pytest.importorskip("av")
    _, parts = rendered
    sizes = {part: SIZES[part] for part in ("test", "validation", "train")}
    pair = corpus_module._sample_parts(0, sizes)["test"][0]
    video = draw_scene(pair.scenes[0], np.random.default_rng(pair.seed))
    with av.open(str(parts["test"][0].path)) as container:
        assert container.streams.video[0].average_rate == 8
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert decoded.shape == video.shape
    assert np.abs(decoded.astype(int) - video.astype(int)).mean() < 6


def test_equal_seeds_give_equal_files_and_other_seeds_others(
    rendered: tuple, tmp_path: Path
) -> None:
    folder, parts = rendered
    again = synthetic_corpus(tmp_path / "again", **SIZES, progress=False)
    for part, clips in parts.items():
        assert (folder / f"{part}.csv").read_bytes() == (
            tmp_path / "again" / f"{part}.csv"
        ).read_bytes()
        for clip, same in zip(clips, again[part], strict=True):
            assert clip.path.read_bytes() == same.path.read_bytes()
    other = synthetic_corpus(tmp_path / "again", seed=1, **SIZES, progress=False)
    assert [c.caption for c in other["train"]] != [c.caption for c in parts["train"]]
    assert not {c.path for c in other["test"]} & {c.path for c in again["test"]}


def test_rendering_goes_on_after_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    encode, calls = corpus_module.encode, []

    def interrupted(av: object, frames: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return encode(av, frames)

    monkeypatch.setattr(corpus_module, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_corpus(tmp_path, **SIZES, progress=False)
    left = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert 0 < len(left) < sum(SIZES.values())
    assert {path.suffix for path in left} == {".mp4"}, "captions come last, nothing half-written"

    monkeypatch.setattr(corpus_module, "encode", encode)
    parts = synthetic_corpus(tmp_path, **SIZES, progress=False)
    assert all(path.stat().st_mtime_ns == time for path, time in left.items() if paired(path, left))
    load_part(parts["train"], num_frames=4, size=16, cache=None, progress=False)

    monkeypatch.setattr(corpus_module, "encode", lambda *_: pytest.fail("rendered once more"))
    assert synthetic_corpus(tmp_path, **SIZES, progress=False) == parts


def paired(path: Path, files: dict[Path, int]) -> bool:
    """Whether the other clip of a pair is there too; half a pair is rendered anew."""
    id, digest = path.stem[:-9], path.stem[-9:]
    other = {"a": "b", "b": "a"}[id[-1]]
    return path.with_name(f"{id[:-1]}{other}{digest}.mp4") in files


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 7}, "train must be an even number of at least 2 clips, got 7"),
        ({"validation": 0}, "validation must be .* got 0"),
        ({"test": -2}, "test must be .* got -2"),
    ],
    ids=["odd", "none", "negative"],
)
def test_wrong_corpus_sizes(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=message):
        synthetic_corpus(tmp_path, **sizes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["av", "matplotlib.figure"], ids=["video", "bench"])
def test_a_missing_extra_is_named_with_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    if module == "av":
        with pytest.raises(ImportError, match=r"PyAV: pip install 'muse-adapter\[video\]'"):
            synthetic_corpus(tmp_path / "new", **SIZES)
    else:
        with pytest.raises(ImportError, match=r"matplotlib: pip install 'muse-adapter\[bench\]'"):
            contact_sheet(tmp_path / "new" / "sheet.png", [("query", "id", [])])
    assert not (tmp_path / "new").exists()


# One's own captions -------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of files that are there; nothing reads what is in them."""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(
            b"video,caption\na.mp4,a dog\nb.mp4,a cat\na.mp4,one dog\n",
            [
                ("a.mp4#1", "a.mp4", "a dog"),
                ("b.mp4#1", "b.mp4", "a cat"),
                ("a.mp4#2", "a.mp4", "one dog"),
            ],
            id="two_columns",
        ),
        pytest.param(
            b"caption,other,video,id\na dog,x,sub/c.mp4,7\n",
            [("7", "sub/c.mp4", "a dog")],
            id="other_order_and_columns",
        ),
        pytest.param(
            b'\xef\xbb\xbfvideo,caption\r\na.mp4,"a dog, a cat ""Tom"""\r\n\r\n',
            [("a.mp4#1", "a.mp4", 'a dog, a cat "Tom"')],
            id="byte_order_mark_windows_quotes_blank_line",
        ),
        pytest.param(
            "video , caption\n a.mp4 , ein Hündchen 小狗 \n".encode(),
            [("a.mp4#1", "a.mp4", "ein Hündchen 小狗")],
            id="blanks_and_other_scripts",
        ),
    ],
)
def test_captions_are_read(
    tmp_path: Path, videos: Path, content: bytes, expected: list[tuple[str, str, str]]
) -> None:
    table = tmp_path / "captions.csv"
    table.write_bytes(content)
    clips = read_captions(table, videos)
    assert clips == [Clip(id, videos / name, caption) for id, name, caption in expected]


MANY = "".join(f"lost{i}.mp4,text {i}\n" for i in range(9)).encode()
BAD_TABLES = {
    "no_columns": (b"file,text\na.mp4,x\n", ValueError, "columns video and caption.*'file,text'"),
    "semicolons": (b"video;caption\na.mp4;x\n", ValueError, "separated by commas.*video;caption"),
    "column_twice": (b"video,caption,video\na.mp4,x,b.mp4\n", ValueError, "each once"),
    "no_lines": (b"video,caption\n", ValueError, "there are no captions"),
    "empty_file": (b"", ValueError, "there are no captions"),
    "one_missing": (b"video,caption\na.mp4,x\nz.mp4,y\n", FileNotFoundError, "1 of 2 .*: z.mp4$"),
    "many_missing": (
        b"video,caption\na.mp4,x\n" + MANY,
        FileNotFoundError,
        r"9 of 10 videos are not in .*: lost0\.mp4, .*, lost4\.mp4 and 4 more$",
    ),
    "a_folder_for_a_video": (b"video,caption\nsub,x\n", FileNotFoundError, "1 of 1 .*: sub$"),
    "repeated_ids": (
        b"id,video,caption\n1,a.mp4,x\n2,b.mp4,y\n1,b.mp4,z\n",
        ValueError,
        "ids must be unique, repeated are '1'",
    ),
    "empty_id": (b"id,video,caption\n,a.mp4,x\n", ValueError, "empty id in line 2"),
    "empty_caption": (
        b"video,caption\na.mp4,x\nb.mp4, \nb.mp4,\n",
        ValueError,
        "empty caption in line 3, line 4",
    ),
    "empty_video": (b"video,caption\n,x\n", ValueError, "empty video in line 2"),
    "comma_without_quotes": (
        b"video,caption\na.mp4,a dog, a cat\n",
        ValueError,
        "line 2 has 3 fields, expected 2.*double quotes",
    ),
    "unknown_reversal": (
        b"id,video,caption,reversal\n1,a.mp4,x,2\n",
        ValueError,
        "reversal must be an id of the file, got '2'",
    ),
    "latin_1": ("video,caption\na.mp4,Hündchen\n".encode("latin-1"), ValueError, "not UTF-8"),
    "utf_16": ("video,caption\na.mp4,x\n".encode("utf-16"), ValueError, "not UTF-8"),
}


@pytest.mark.parametrize(
    ("content", "error", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys()
)
def test_bad_tables(
    tmp_path: Path, videos: Path, content: bytes, error: type[Exception], message: str
) -> None:
    table = tmp_path / "captions.csv"
    table.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_captions(table, videos)
    assert "captions.csv" in str(caught.value), "the message names the file"


@pytest.mark.parametrize(
    ("table", "folder", "error", "message"),
    [
        ("captions.csv", "empty", ValueError, "folder of videos is empty: .*empty"),
        ("captions.csv", "nowhere", FileNotFoundError, "no such folder of videos: .*nowhere"),
        ("other.csv", "videos", FileNotFoundError, r"no such file of captions: .*other\.csv"),
    ],
    ids=["empty_folder", "no_folder", "no_table"],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, videos: Path, table: str, folder: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,x\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        read_captions(tmp_path / table, tmp_path / folder)


# Splitting ----------------------------------------------------------------------------------------


def own_clips(texts: dict[str, list[str]]) -> list[Clip]:
    return [
        Clip(f"{video}#{i}", Path(video), text)
        for video, captions in texts.items()
        for i, text in enumerate(captions)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_shares_neither_videos_nor_captions(seed: int) -> None:
    texts = {f"v{i}": [f"first {i // 2}", f"second {i}"] for i in range(60)}
    texts["v0"].append("FIRST  7")  # the same as "first 7" but for case and blanks
    clips = own_clips(texts)
    parts = split(clips, seed)
    assert [len({c.path for c in parts[p]}) for p in ("train", "validation", "test")] == [48, 6, 6]
    assert sorted(c.id for part in parts.values() for c in part) == sorted(c.id for c in clips)
    for what in (lambda c: c.path, lambda c: " ".join(c.caption.lower().split())):
        seen = [{what(clip) for clip in part} for part in parts.values()]
        assert sum(map(len, seen)) == len(set.union(*seen))
    assert split(clips, seed) == parts
    assert split(clips, seed + 3) != parts


def test_split_keeps_a_large_group_for_training() -> None:
    texts = {f"v{i}": ["the same"] for i in range(50)} | {f"w{i}": [f"{i}"] for i in range(50)}
    for seed in range(5):
        parts = split(own_clips(texts), seed)
        assert {c.path for c in parts["train"]} >= {Path(f"v{i}") for i in range(50)}
        assert len(parts["test"]) == len(parts["validation"]) == 10


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param({"a": ["x"], "b": ["y"]}, id="two_videos"),
        pytest.param({f"v{i}": ["same"] for i in range(20)}, id="one_caption_for_all"),
        pytest.param({f"v{i}": [f"{i}", f"{i + 1}"] for i in range(20)}, id="a_chain"),
    ],
)
def test_split_says_what_cannot_be_split(texts: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=f"cannot split {len(texts)} videos into train.*groups"):
        split(own_clips(texts), 0)


# Decoding -----------------------------------------------------------------------------------------


def with_damage(clips: list[Clip], folder: Path) -> list[Clip]:
    """Two unreadable files among the clips."""
    folder.mkdir(exist_ok=True)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(b"noise" * 100)
    bad = [Clip(name, folder / f"{name}.mp4", name) for name in ("empty", "noise")]
    return [clips[0], bad[0], clips[1], bad[1], clips[2]]


def test_a_part_is_aligned_and_masks_short_clips(rendered: tuple) -> None:
    _, parts = rendered
    part = load_part(parts["train"], num_frames=20, size=24, cache=None, progress=False)
    assert part.clips == parts["train"]
    assert part.frames.shape == (12, 20, 3, 24, 24) and part.frames.dtype == torch.uint8
    assert part.mask.shape == (12, 20) and part.mask.dtype == torch.bool
    assert not part.mask.all() and part.mask[:, :5].all()
    assert not part.frames[~part.mask].any()
    assert part.frames[part.mask].flatten(1).any(dim=1).all()
    for number in (0, 5):
        one = load_part([part.clips[number]], num_frames=20, size=24, cache=None, progress=False)
        assert torch.equal(one.frames[0], part.frames[number])


@pytest.mark.parametrize("cached", [False, True], ids=["no_cache", "cache"])
def test_unreadable_files_are_left_out_with_one_warning(
    rendered: tuple, tmp_path: Path, cached: bool
) -> None:
    clips = with_damage(rendered[1]["test"], tmp_path / "bad")
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):  # from the cache the second time
        with pytest.warns(UserWarning) as caught:
            part = load_part(clips, num_frames=4, size=16, cache=cache, progress=False)
        assert len(caught) == 1
        for text in ("2 of 5 videos are left out", "empty.mp4", "noise.mp4", "Invalid data"):
            assert text in str(caught[0].message)
        assert part.clips == [clips[0], clips[2], clips[4]]
        assert len(part.frames) == len(part.mask) == 3


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (lambda clips: [], "there are no clips to read"),
        (lambda clips: [clips[1], clips[3]], r"none of 2 videos can be read: .*empty\.mp4"),
    ],
    ids=["no_clips", "all_unreadable"],
)
def test_nothing_to_read_is_an_error(
    rendered: tuple, tmp_path: Path, select: Callable[[list[Clip]], list[Clip]], message: str
) -> None:
    clips = select(with_damage(rendered[1]["test"], tmp_path / "bad"))
    with pytest.raises(ValueError, match=message):
        load_part(clips, num_frames=4, size=16, cache=None, progress=False)


def test_a_video_is_decoded_once_and_again_only_when_something_changes(
    rendered: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rendered[1]["train"]
    files = [tmp_path / f"{i}.mp4" for i in range(3)]
    for file, clip in zip(files, source, strict=False):
        file.write_bytes(clip.path.read_bytes())
    clips = [Clip(f"{i}-{j}", file, f"{i} {j}") for j in range(2) for i, file in enumerate(files)]
    read: list[str] = []
    plain = data_module.read_frames
    monkeypatch.setattr(
        data_module,
        "read_frames",
        lambda path, *a, **k: read.append(path.name) or plain(path, *a, **k),
    )

    def load(num_frames: int = 4) -> data_module.Part:
        read.clear()
        return load_part(
            clips, num_frames=num_frames, size=16, cache=tmp_path / "cache", progress=False
        )

    first = load()
    assert sorted(read) == ["0.mp4", "1.mp4", "2.mp4"]
    assert torch.equal(first.frames[:3], first.frames[3:])
    again = load()
    assert not read
    assert again.clips == first.clips
    assert torch.equal(again.frames, first.frames) and torch.equal(again.mask, first.mask)
    assert load(num_frames=5).frames.shape[1] == 5 and len(read) == 3

    files[1].write_bytes(source[5].path.read_bytes())
    changed = load()
    assert len(read) == 3
    assert not torch.equal(changed.frames[1], first.frames[1])
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".pt"}


def test_an_interrupt_while_decoding_leaves_nothing(
    rendered: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_module.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_part(
            rendered[1]["test"], num_frames=4, size=16, cache=tmp_path / "cache", progress=False
        )
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("target", ["corpus", "cache", "sheet"])
def test_an_unwritable_target_is_named(rendered: tuple, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "sub"
    with pytest.raises(OSError, match=r"cannot make the folder .*file"):
        if target == "corpus":
            synthetic_corpus(folder, **SIZES, progress=False)
        elif target == "cache":
            load_part(rendered[1]["test"], num_frames=4, size=16, cache=folder, progress=False)
        else:
            contact_sheet(folder / "sheet.png", [("query", "id", [])])


# The picture --------------------------------------------------------------------------------------


def test_strips_leave_masked_frames_blank() -> None:
    frames = torch.arange(1, 4, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 5)
    strip = strip_of(frames, torch.tensor([True, True, False]))
    assert strip.shape == (3, 6, 21)
    assert (strip[:, 1:-1, 1:6] == 1).all() and (strip[:, 1:-1, 8:13] == 2).all()
    assert (strip[:, :, 13:] == 255).all() and (strip[:, 0] == 255).all()


def test_contact_sheet_marks_the_hit(rendered: tuple, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: muse-adapter[bench]")
    av = pytest.importorskip("av")
    part = load_part(rendered[1]["test"], num_frames=8, size=32, cache=None, progress=False)
    results = [
        (clip, 0.9 - 0.1 * i, part.frames[i], part.mask[i]) for i, clip in enumerate(part.clips[:5])
    ]

    def green(target: str) -> int:
        path = tmp_path / "deep" / "sheet.png"
        contact_sheet(path, [(QUERY, target, results)] * 3)
        assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
        with av.open(str(path)) as container:
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        assert min(picture.shape[:2]) > 300
        return int((np.abs(picture - [0x1A, 0x7F, 0x37]).max(axis=-1) < 3).sum())

    assert green("not among them") == 0
    assert green(part.clips[3].id) > 500


def test_contact_sheet_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one query"):
        contact_sheet(tmp_path / "sheet.png", [])


def test_a_damaged_cache_of_frames_is_named(rendered: tuple, tmp_path: Path) -> None:
    clips = rendered[1]["test"][:1]
    load_part(clips, num_frames=4, size=16, cache=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    for content in (b"", b"junk", file.read_bytes()[:-100]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{file} is damaged, delete it")):
            load_part(clips, num_frames=4, size=16, cache=tmp_path, progress=False)


def test_a_folder_for_captions_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"cannot read the captions {re.escape(str(tmp_path))}"):
        read_captions(tmp_path, tmp_path)
