"""Extraction from and to object storage keeps the same promises, on a server with the S3 protocol."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from spanlake import cli

moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def s3(endpoint: str) -> fs.S3FileSystem:
    """Returns the server's file system in pyarrow, with `in/a.parquet` and `in/b.parquet` in the bucket `lake`."""
    options = {"endpoint_override": endpoint, "scheme": "http", "region": "us-east-1", "allow_bucket_creation": True}
    filesystem = fs.S3FileSystem(access_key="name", secret_key="secret", **options)
    filesystem.create_dir("lake")
    for name in "ab":
        table = pa.table({"id": range(100), "text": [f"{name} {row} met Ada in Montreal" for row in range(100)]})
        pq.write_table(table, f"lake/in/{name}.parquet", filesystem=filesystem, row_group_size=30)
    return filesystem


def test_from_and_to_object_storage(
    cluster: None, s3: fs.S3FileSystem, endpoint: str, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def uri(path: str) -> str:
        return f"s3://name:secret@lake/{path}?endpoint_override={endpoint}&scheme=http&region=us-east-1"

    def units() -> list[str]:
        found = s3.get_file_info(fs.FileSelector("lake/out"))
        return [info.path for info in found if info.path.endswith(".parquet")]

    extract = ["extract", uri("in/*.parquet"), uri("out"), "--labels", "person,place", "--unit-rows", "40"]
    extract += ["--model", str(tiny_model_dir), "--precision", "float32"]
    audit = ["audit", uri("out")]
    assert cli.main(extract) == 0 and cli.main(audit) == 0
    assert len(units()) == 6

    s3.delete_file(units()[1])
    assert cli.main(audit) == 1
    assert cli.main(extract) == 0
    capsys.readouterr()
    assert cli.main(audit) == 0
    assert json.loads(capsys.readouterr().out)["output_rows"] == 200

    everything = s3.get_file_info(fs.FileSelector("lake/out", recursive=True))
    files = [info.path for info in everything if info.type == fs.FileType.File]
    assert not [path for path in files if "/tmp/" in path]
    assert not [path for path in files if b"secret" in s3.open_input_stream(path).read()]

    assert cli.main([*extract, "--threshold", "0.9"]) == 2
    message = capsys.readouterr().err
    assert "threshold 0.5 in the output, 0.9 requested" in message and "secret" not in message
