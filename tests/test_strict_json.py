"""JSON of a damaged file: every oddity is one `ValueError`."""

from __future__ import annotations

import pytest

from muse_adapter.strict_json import MAX_SIZE, parse_json, read_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("\ufeff{}", "BOM"),
        ('{"a": 1, "b": 2, "a": 3}', r"names are repeated: \['a'\]"),
        ('[{"a": {"b": 1, "b": 1}}]', "names are repeated"),
        ('{"a": NaN}', "not finite: NaN"),
        ('{"a": -Infinity}', "not finite: -Infinity"),
        ('{"a": 1e999}', "not finite: 1e999"),
        ('{"a": 1' + "0" * 18 + "}", "an integer has 19 digits"),
        ('{"a": -' + "9" * 6000 + "}", "an integer has 6001 digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_values() -> None:
    text = '{"a": [1, -2.5, true, null, "\\u00e9"], "b": ' + "9" * 18 + "}"
    assert parse_json(text) == {"a": [1, -2.5, True, None, "\u00e9"], "b": 10**18 - 1}


def test_files(tmp_path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"[" + b" " * MAX_SIZE + b"]")
    with pytest.raises(ValueError, match="larger than"):
        read_text(path)
    path.write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(ValueError, match="utf-8"):
        read_text(path)
