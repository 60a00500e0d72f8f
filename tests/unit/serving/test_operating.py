"""What an operator changes and reads while a server runs: its keys, and the log of who asked."""

import asyncio
import json
import logging
import socket
from pathlib import Path

import pytest

from spanlake import cli
from spanlake.errors import UserError
from spanlake.serving import keys as keys_module
from spanlake.serving.access import TurnHandler
from spanlake.serving.audit import open_audit_log
from spanlake.serving.config import read_config
from spanlake.serving.errors import ApiError
from spanlake.serving.keys import add_key, read_keys
from spanlake.serving.middleware import RequestRecord, log_access


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at for each request."""
    monkeypatch.setattr(keys_module, "_LOOK_SECONDS", 0.0)


def test_keys_change_without_a_restart(always: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.yaml"
    old = add_key(file, "team-2025", None)
    keys = read_keys(file)
    assert keys.admit(old) == "team-2025"
    new = add_key(file, "team-2026", None)
    assert keys.admit(new) == "team-2026" and keys.admit(old) == "team-2025"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines[2:]))  # the first two are those of the old key
    assert keys.admit(new) == "team-2026"
    with pytest.raises(ApiError) as refused:
        keys.admit(old)
    assert refused.value.status == 401
    file.write_text("team-2026: {sha256: [")
    with caplog.at_level(logging.ERROR):
        assert keys.admit(new) == "team-2026"
    assert "the keys stay as they are" in caplog.text
    file.unlink()
    assert keys.admit(new) == "team-2026"


def test_a_key_is_added_to_a_file_that_was_edited(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    old = add_key(file, "old", None)
    file.write_text(file.read_text().rstrip("\n"))
    new = add_key(file, "new", None)
    keys = read_keys(file)
    assert (keys.admit(old), keys.admit(new)) == ("old", "new")


def test_a_key_is_not_added_where_it_would_break_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("{}\n")
    with pytest.raises(UserError, match="write one key under the other"):
        add_key(file, "new", None)
    assert file.read_text() == "{}\n"


def test_the_audit_log_names_who_asked_and_nothing_of_the_text(tmp_path: Path) -> None:
    logger = logging.getLogger("spanlake.access")
    handler = open_audit_log(tmp_path / "audit")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        log_access(RequestRecord("r1", "POST", "/v1/extract", 200, 0.1, key="team", texts=3, entities=7))
        [file] = (tmp_path / "audit").iterdir()
        file.rename(tmp_path / "rotated.jsonl")  # as logrotate does
        log_access(RequestRecord("r2", "POST", "/v1/extract", 401, 0.1, error_type="unauthorized"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
    first = json.loads((tmp_path / "rotated.jsonl").read_text())
    second = json.loads(file.read_text())
    assert (first["key"], first["texts"], first["entities"], first["status"]) == ("team", 3, 7, 200)
    assert (second["key"], second["status"], second["error_type"]) == (None, 401, "unauthorized")
    assert first["time"] <= second["time"] and first["time"].endswith("+00:00")
    assert (tmp_path / "audit").stat().st_mode & 0o077 == 0


def test_the_lines_of_one_turn_of_the_loop_are_one_write(tmp_path: Path) -> None:
    class Counting(logging.FileHandler):
        writes = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.writes += 1
            super().emit(record)

    target = Counting(tmp_path / "log")
    handler = TurnHandler(target)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def log(text: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": text, "levelname": "INFO"}))

    async def answer() -> None:
        for _ in range(2):
            for text in ("first", "100 %s"):
                log(text)
            await asyncio.sleep(0)

    asyncio.run(answer())
    assert target.writes == 2
    log("outside of a loop")
    assert (tmp_path / "log").read_text() == "INFO first\nINFO 100 %s\n" * 2 + "INFO outside of a loop\n"
    handler.close()


def test_an_audit_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_config({"audit_log": str(tmp_path)}).audit_log == str(tmp_path)
    with pytest.raises(UserError, match="set audit_log to a directory that can"):
        open_audit_log(tmp_path / "file")


def test_a_port_in_use_is_said_before_ray_starts(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["serve", "--model", str(tiny_model_dir), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"spanlake: Nothing can listen at 127.0.0.1:{port} (") and "give another --port" in said
