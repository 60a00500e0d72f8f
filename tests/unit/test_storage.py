"""Tests places: keys in object storage are read literally, and files are replaced whole or not at all."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from spanlake.storage import Place, locate


@pytest.fixture(scope="module")
def object_storage() -> Iterator[str]:
    """Starts an S3 server, and yields the options of a URI on it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = dict(os.environ)
    os.environ.update({"AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "secret"})
    arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 120
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            options = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1"}
            fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir("lake")
            yield "?" + "&".join(f"{name}={value}" for name, value in options.items())
        finally:
            server.terminate()
            os.environ.clear()
            os.environ.update(before)


@pytest.mark.parametrize("key", ["trip data/x", "50%", "%23", "a+b", "a#b", "Zoë/日本.parquet", "plain"])
def test_a_key_is_taken_as_it_is_written(object_storage: str, key: str) -> None:
    bucket = locate(f"s3://lake{object_storage}")
    bucket.write(key, b"found")
    named = locate(f"s3://lake/{key}{object_storage}")
    assert named.path == f"lake/{key}" and named.kind() == fs.FileType.File
    assert bucket.read(key) == b"found"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return locate(str(tmp_path))


def test_a_file_is_replaced_whole(place: Place) -> None:
    assert place.read("a") is None
    place.write("a", b"old")
    place.write("a", b"new")
    assert place.read("a") == b"new"
    assert [info.base_name for info in place.list(recursive=True)] == ["a"]


def test_a_draft_that_fails_replaces_nothing(place: Place) -> None:
    place.write("a", b"old")
    with pytest.raises(RuntimeError), place.replacing("a", "draft") as path:
        Path(path).write_bytes(b"half")
        raise RuntimeError
    assert place.read("a") == b"old"


def test_a_directory_is_published_in_place_of_the_old_one(place: Place, tmp_path: Path) -> None:
    for content in ("one", "two"):
        draft = tmp_path / f"made-{content}"
        draft.mkdir()
        (draft / content).write_text(content)
        place.publish(draft, "package")
    assert [info.base_name for info in locate(place.child("package")).list(recursive=True)] == ["two"]
