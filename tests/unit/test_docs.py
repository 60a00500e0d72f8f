"""The documentation site builds without a warning, and its commands are those that tests run."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from commands import ROOT, activated, run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        ["mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**activated(), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "site" / "reference" / "command-line" / "index.html").read_text(encoding="utf-8")
    for command in ("predict", "extract", "train", "serve", "package verify", "plan"):
        assert f"spanlake {command}</h2>" in re.sub(r"<a class=\"headerlink.*?</a>", "", page), command
    reference = (tmp_path / "site" / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert 'id="spanlake.Extractor.extract"' in reference
    for path in (tmp_path / "site").rglob("*.html"):  # a reader needs no other server
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://", path.read_text(encoding="utf-8"))


def test_the_commands_of_the_quick_start_are_those_of_the_readme_which_tests_run() -> None:
    listed = commands((ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8"))
    assert len(listed) > 8
    assert not {*listed} - {*commands(README)}


def test_the_evidence_of_each_failure_is_what_the_code_says() -> None:
    """Other tests provoke these failures. This one notices when a message has changed."""
    said = "\n".join(
        node.value
        for path in (ROOT / "platform" / "spanlake").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.count(" | ") == 3]
    failures = [row for row in rows if row[0] not in ("| symptom", "|---") and "`" in row[1]]
    assert len(failures) >= 20
    for _, evidence, *_ in failures:
        for quoted in re.findall(r"`([^`]+)`", evidence):
            for part in quoted.replace('"complete": false', "complete").split("…"):
                assert part.strip(" ,;") in said, part


@pytest.mark.slow
def test_the_commands_of_the_operations_guide(tmp_path: Path) -> None:
    listed = commands((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    (tmp_path / "texts.txt").write_text("Alain Farley works at McGill University\n")
    tested_elsewhere = 'nginx -c "$PWD/deploy/nginx.conf"'  # by tests/unit/serving/test_proxy.py
    assert tested_elsewhere in listed
    for command in listed:
        if command != tested_elsewhere:
            done = run(command, tmp_path)
            assert done.returncode == 0 and "replicas:" in done.stdout, done.stderr
