"""Addresses of Milvus: what they may say, and that credentials are never shown."""

from __future__ import annotations

import pytest

from muse_adapter.search.milvus.address import Address, is_milvus_address, parse_address


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://localhost", Address("http://localhost:19530")),
        ("https://cloud.example", Address("https://cloud.example:443")),
        ("http://[::1]:7/", Address("http://[::1]:7")),
        ("http://host:5/films", Address("http://host:5", "films")),
        ("http://me:p%40ss%3A@host", Address("http://host:19530", "", "me:p@ss:")),
        ("https://key@host/db", Address("https://host:443", "db", "key")),
        (
            "http://host?index=IVF_FLAT&nlist=8",
            Address("http://host:19530", options={"index": "IVF_FLAT", "nlist": "8"}),
        ),
        ("/data/a.db?timeout=3", Address("/data/a.db", options={"timeout": "3"})),
    ],
)
def test_what_an_address_says(uri, expected, monkeypatch):
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)
    assert is_milvus_address(uri)
    assert parse_address(uri) == expected
    assert expected.is_file == uri.startswith("/")


@pytest.mark.parametrize("uri", ["clips", "clips.index", "a.db/clips", "what?.index"])
def test_folders(uri):
    assert not is_milvus_address(uri)


def test_parameters_and_defaults():
    address = parse_address("http://host?index=HNSW&M=32&ef=50&consistency=Strong&timeout=7")
    assert address.build_parameters() == {"M": 32, "efConstruction": 200}
    assert address.search_parameters("HNSW", {"M": 16}) == {"ef": 50}
    assert address.search_parameters("IVF_FLAT", {"nlist": 8}) == {"nprobe": 8}
    assert (address.consistency, address.timeout) == ("Strong", 7.0)
    assert parse_address("http://host").index == "HNSW"
    assert parse_address("clips.db").index == "FLAT"


def test_the_address_beats_the_environment(monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "root:env")
    assert parse_address("http://host").token == "root:env"
    assert parse_address("http://a:b@host").token == "a:b"


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://me:hunter2@host?size=3", "unknown option 'size'; known are M, consistency, ef"),
        ("http://me:hunter2@host?index=DISK", "index must be one of FLAT, HNSW, IVF_FLAT, IVF_SQ8"),
        ("http://me:hunter2@host?ef=0", "ef must be a whole number of at least 1, got '0'"),
        ("clips.db?timeout=1.5", "timeout must be a whole number"),
        ("clips.db?consistency=None", "consistency must be one of Strong, Session"),
        ("http://me:hunter2@host:port", "has no valid host and port"),
        ("http://me:hunter2@/db", r"http\(s\)://host:port of Milvus; got scheme 'http'"),
        ("ftp://me:hunter2@host", "got scheme 'ftp'"),
        ("http://me:x?hunter2@host:19530", "write / as %2F, . as %3F and # as %23"),
        ("http://me:x/hunter2@host:19530", "write / as %2F"),
        ("https://x/hunter2@host", "write / as %2F"),
        ("http://me:x#hunter2@host", "has no valid host and port"),
        ("http://me:hunter2@host/a/b", "only the name of a database may follow"),
    ],
)
def test_wrong_addresses(uri, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_address(uri)
    assert SECRET not in str(caught.value)


def test_credentials_are_not_shown():
    address = parse_address("http://me:hunter2@host/films")
    assert address.token == "me:hunter2"
    assert str(address) == "'http://host:19530/films'"
    assert SECRET not in repr(address)
