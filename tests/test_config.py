"""MuseConfig: defaults, validation, side lengths, JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muse_adapter.config import (
    AGGREGATIONS,
    INITS,
    MIXERS,
    SCALES,
    MuseConfig,
)
from muse_adapter.version import VERSION

CONFIGS = st.builds(
    MuseConfig,
    dim=st.sampled_from([4, 12, 64, 128]),
    in_dim=st.none() | st.integers(1, 1024),
    scales=st.permutations(SCALES).flatmap(
        lambda order: st.integers(1, len(order)).map(lambda n: tuple(order[:n]))
    ),
    aggregation=st.sampled_from(AGGREGATIONS),
    depth=st.integers(1, 12),
    mixer=st.sampled_from(MIXERS),
    d_state=st.integers(1, 64),
    d_conv=st.integers(1, 8),
    expand=st.integers(1, 4),
    dropout=st.floats(0, 1, exclude_max=True),
    num_prefix_tokens=st.integers(0, 5),
    init=st.sampled_from(INITS),
)


def test_defaults_are_the_papers() -> None:
    assert dataclasses.asdict(MuseConfig()) == {
        "dim": 512,
        "in_dim": None,
        "scales": (0.5, 1.0, 2.0),
        "aggregation": "scale_wise",
        "depth": 4,
        "mixer": "bimamba",
        "d_state": 16,
        "d_conv": 4,
        "expand": 1,
        "dropout": 0.1,
        "num_prefix_tokens": 1,
        "init": "identity",
    }


def test_scales_and_dropout_are_normalised() -> None:
    config = MuseConfig(scales=[2, 1, 0.5], dropout=0)  # type: ignore[arg-type]
    assert config.scales == (2.0, 1.0, 0.5)
    assert all(type(scale) is float for scale in config.scales)
    assert type(config.dropout) is float
    assert config == MuseConfig(scales=(2.0, 1.0, 0.5), dropout=0.0)
    assert hash(config) == hash(MuseConfig(scales=(2.0, 1.0, 0.5), dropout=0.0))


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MuseConfig().dim = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"dim": 7, "scales": (0.25, 0.5, 1)}, id="odd dim without upscaling"),
        pytest.param({"dim": 6}, id="scale 2, even dim"),
        pytest.param({"dim": 12, "scales": (4,)}, id="scale 4, dim divisible by 4"),
        pytest.param({"dim": 48, "mixer": "attention"}, id="one head below 64"),
        pytest.param({"dim": 192, "mixer": "attention"}, id="three heads of 64"),
        pytest.param({"dim": 96}, id="no heads to divide"),
        pytest.param({"in_dim": 512}, id="in_dim equal to dim"),
        pytest.param({"num_prefix_tokens": 0}, id="no prefix"),
        pytest.param({"dropout": 0.999}, id="dropout below 1"),
    ],
)
def test_accepts(fields: dict) -> None:
    MuseConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        *(
            pytest.param({name: bad}, error, message, id=f"{name}={bad!r}")
            for name in ("dim", "depth", "d_state", "d_conv", "expand", "in_dim")
            for bad, error, message in [
                (0, ValueError, f"{name} must be at least 1, got 0"),
                (-2, ValueError, f"{name} must be at least 1, got -2"),
                (True, TypeError, f"{name} must be an int, got True"),
                (8.0, TypeError, f"{name} must be an int, got 8.0"),
                ("8", TypeError, f"{name} must be an int, got '8'"),
            ]
        ),
        ({"dim": None}, TypeError, "dim must be an int, got None"),
        ({"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens must be at least 0, got -1"),
        ({"num_prefix_tokens": False}, TypeError, "num_prefix_tokens must be an int, got False"),
        ({"scales": ()}, ValueError, "scales must have at least one factor, got none"),
        ({"scales": (1, 1.0)}, ValueError, r"scales must not repeat, got \[1.0, 1.0\]"),
        ({"scales": (1, 3)}, ValueError, r"unknown scales \[3.0\]; known are \[0.25, 0.5, 1.0"),
        ({"scales": (1, 3, 7, 14)}, ValueError, r"side lengths go to MuseConfig.from_sides\("),
        ({"scales": (float("nan"),)}, ValueError, r"unknown scales \[nan\]"),
        ({"scales": 1.0}, TypeError, "scales must be a tuple or list of numbers, got 1.0"),
        ({"scales": "1"}, TypeError, "scales must be a tuple or list of numbers, got '1'"),
        ({"scales": {1.0}}, TypeError, "scales must be a tuple or list of numbers"),
        ({"scales": (True,)}, TypeError, "scales must be a tuple or list of numbers"),
        ({"scales": ("1",)}, TypeError, "scales must be a tuple or list of numbers"),
        ({"dim": 7}, ValueError, "scale 2 needs a dim divisible by 2, got dim=7"),
        ({"dim": 6, "scales": (4,)}, ValueError, "scale 4 needs a dim divisible by 4, got dim=6"),
        ({"aggregation": "time_wise"}, ValueError, "aggregation 'time_wise'; known are scale_wise"),
        (
            {"mixer": "lstm"},
            ValueError,
            "unknown mixer 'lstm'; known are bimamba, mamba, a",
        ),
        ({"init": "zero"}, ValueError, "unknown init 'zero'; known are identity, release"),
        ({"mixer": None}, TypeError, "mixer must be a string, got None"),
        (
            {"mixer": "attention", "dim": 96},
            ValueError,
            "'attention' has heads of 64.*dim=96",
        ),
        ({"dropout": 1}, ValueError, r"dropout must be in \[0, 1\), got 1"),
        ({"dropout": -0.1}, ValueError, r"dropout must be in \[0, 1\), got -0.1"),
        ({"dropout": float("nan")}, ValueError, r"dropout must be in \[0, 1\), got nan"),
        ({"dropout": False}, TypeError, "dropout must be a number, got False"),
        ({"dropout": "0.1"}, TypeError, "dropout must be a number, got '0.1'"),
    ],
)
def test_refuses(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MuseConfig(**fields)


@pytest.mark.parametrize(
    ("sides", "grid", "scales"),
    [
        pytest.param({1, 3, 7, 14}, (7, 7), (0.5, 1.0, 2.0), id="paper"),
        pytest.param({14, 7, 3}, (7, 7), (0.5, 1.0, 2.0), id="class token not named"),
        pytest.param([14, 1, 3], (7, 7), (2.0, 0.5), id="order of a list is kept"),
        pytest.param({1, 3, 7, 14, 28}, (14, 14), (0.25, 0.5, 1.0, 2.0), id="14x14 grid"),
        pytest.param([56, 28], [14, 14], (4.0, 2.0), id="upscaled, grid a list"),
        pytest.param([(3, 4), (14, 18)], (7, 9), (0.5, 2.0), id="pairs on an oblong grid"),
        pytest.param([2], (1, 1), (2.0,), id="one patch"),
    ],
)
def test_from_sides(sides: object, grid: tuple[int, int], scales: tuple[float, ...]) -> None:
    config = MuseConfig.from_sides(sides, grid, dim=16, depth=2)  # type: ignore[arg-type]
    assert config == MuseConfig(scales=scales, dim=16, depth=2)


@pytest.mark.parametrize(
    ("sides", "grid", "fields", "error", "message"),
    [
        (
            {1, 5},
            (7, 7),
            {},
            ValueError,
            r"sides 5 do not exist on a 7x7 grid, which allows 1 \(class token\), 3 \(scale 0.5\), "
            r"7 \(scale 1\), 14 \(scale 2\), 28 \(scale 4\)",
        ),
        ({7}, (7, 9), {}, ValueError, r"sides 7 do not exist on a 7x9 grid.*, 3x4 \(scale 0.5\)"),
        ([7, 7], (7, 7), {}, ValueError, "sides must not repeat"),
        ({1}, (7, 7), {}, ValueError, "at least one factor"),
        ({7}, (7,), {}, TypeError, r"grid must be a pair \(H, W\), got \(7,\)"),
        ({7}, (7, 0), {}, ValueError, "grid width must be at least 1, got 0"),
        ({7.0}, (7, 7), {}, TypeError, "a side must be an int, got 7.0"),
        ({7}, (7, 7), {"scales": (1,)}, TypeError, "either sides or scales"),
    ],
)
def test_from_sides_refuses(
    sides: object, grid: object, fields: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MuseConfig.from_sides(sides, grid, **fields)  # type: ignore[arg-type]


@given(CONFIGS)
def test_json_both_ways(config: MuseConfig) -> None:
    text = config.to_json()
    assert json.loads(text)["version"] == VERSION
    assert MuseConfig.from_json(text) == config
    assert MuseConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "version",
    [VERSION, ".".join(VERSION.split(".")[:2]) + ".999", "0.0.3", "0.1.0.dev0", "0.1"],
)
def test_reads_versions_that_are_not_newer(version: str) -> None:
    values = MuseConfig(depth=3).to_dict()
    assert MuseConfig.from_dict({**values, "version": version}) == MuseConfig(depth=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 8}, r"unknown config fields \['heads'\]; known are \['dim'"),
        ({"version": "999.0.0"}, r"written by muse-adapter 999.0.0, newer than this one"),
        ({"version": "0.999"}, r"written by muse-adapter 0.999, newer than this one"),
        ({"version": "999.0.0", "heads": 8}, "newer than this one"),
        ({"version": "next"}, "must have the version.*got 'next'"),
        ({"version": 0.1}, "must have the version.*got 0.1"),
        ({"version": None}, "must have the version.*got None"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_from_dict_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MuseConfig.from_dict({**MuseConfig().to_dict(), **change})


def test_from_dict_needs_every_field() -> None:
    values = MuseConfig().to_dict()
    del values["depth"], values["mixer"]
    with pytest.raises(ValueError, match=r"the config lacks the fields \['depth', 'mixer'\]"):
        MuseConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ValueError, "not valid JSON"),
        ("[1]", TypeError, "must be a mapping of fields, got list"),
    ],
)
def test_from_json_refuses(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MuseConfig.from_json(text)
