"""Tests rules: how they are read, what they find, and what is refused."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from spanlake import Rules, UserError
from spanlake.inference.settings import Settings
from spanlake.rules import patterns
from spanlake.rules.terms import TermFinder


def surfaces(rules: Rules, text: str) -> list[tuple[str, str]]:
    return [(text[match.start : match.end], rules.labels[match.rule]) for match in rules.find(text)]


def test_a_file_has_patterns_kinds_and_lists(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Grace Hopper\n\nAlan Turing\n", encoding="utf-8")
    (tmp_path / "public.txt").write_text("info@example.org\n", encoding="utf-8")
    (tmp_path / "pii.yaml").write_text(
        """
rules:
  - {label: ticket, pattern: 'OPS-[0-9]+'}
  - {label: email, kind: email}
  - {label: phone, kind: phone, region: DE}
  - {label: person, deny_list: [Ada Lovelace], deny_list_file: names.txt}
allow_list: [OPS-1]
allow_list_file: public.txt
""",
        encoding="utf-8",
    )
    rules = Rules.read(tmp_path / "pii.yaml")
    text = "OPS-1 OPS-22 info@example.org ada@example.org 030 123456 Grace\nHopper, ADA LOVELACE"
    assert surfaces(rules, text) == [
        ("OPS-22", "ticket"),
        ("ada@example.org", "email"),
        ("030 123456", "phone"),
        ("Grace\nHopper", "person"),
        ("ADA LOVELACE", "person"),
    ]


def test_rules_are_the_same_in_another_process() -> None:
    rules = Rules({"rules": [{"label": "a", "pattern": "x+"}, {"label": "b", "deny_list": ["Ada"]}]})
    copy = pickle.loads(pickle.dumps(rules))
    assert copy.digest == rules.digest
    assert copy.find("xx Ada") == rules.find("xx Ada") != []


def test_the_digest_changes_with_each_value() -> None:
    first = {"label": "a", "deny_list": ["Ada"]}
    others = [first | {"label": "b"}, first | {"deny_list": ["Eve"]}, first | {"match_case": True}]
    variants = [{"rules": [first]}, {"rules": [first], "allow_list": ["x"]}, *({"rules": [other]} for other in others)]
    assert len({Rules(content).digest for content in variants}) == len(variants)


@pytest.mark.parametrize(
    ("term", "text", "expected"),
    [
        ("Zo\u00eb", "Zoe\u0308 met Zo\u00eb, ZOË", ["Zoe\u0308", "Zo\u00eb", "ZOË"]),  # in any composition
        ("Zoe", "Zoe\u0308 and Zoe2, Zoe", ["Zoe"]),
        ("Ann", "Anna, Joann, Ann-Marie", ["Ann"]),
        ("C++", "C++ or c++17", ["C++", "c++"]),
        ("Blue  Heron", "  Blue\r\n  heron, blue Heron  Blue Herons", ["Blue\r\n  heron", "blue Heron"]),
        ("İzmir", "İZMİR", ["İZMİR"]),
        ("ΟΔΟΣ", "οδός οδος", ["οδος"]),
        ("東京", "東京都に", ["東京"]),
    ],
)
def test_a_term_is_found_as_a_whole_word(term: str, text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in TermFinder([term], match_case=False).spans(text)] == expected


def test_the_longest_whole_term_is_found() -> None:
    finder = TermFinder(["Ann", "Ann Maria", "Maria Sol"], match_case=True)
    text = "Ann Mariah, Ann Maria Sol, ann"
    assert [text[start:end] for start, end in finder.spans(text)] == ["Ann", "Ann Maria"]


def test_no_match_ends_inside_a_character() -> None:
    text = "Zoe\u0308 👩\u200d💻 \ud800e"
    assert surfaces(Rules({"rules": [{"label": "a", "pattern": "e|👩"}]}), text) == [
        ("e\u0308", "a"),
        ("👩\u200d💻", "a"),
        ("e", "a"),
    ]


def test_a_pattern_that_makes_other_engines_hang_is_searched() -> None:
    rules = Rules({"rules": [{"label": "a", "pattern": "(x+x+)+y"}]})
    assert rules.find("x" * 100_000) == []


def test_a_pattern_that_looks_far_ahead_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.05)
    rules = Rules({"rules": [{"label": "a", "pattern": "x[^y]*y|x"}]})
    with pytest.raises(UserError, match="takes more than 0.05 seconds on a text of 50000"):
        rules.find("x" * 50_000)


WRONG: list[tuple[Any, str]] = [
    ({}, "there is no rule"),
    ({"rules": [], "allow": ["x"]}, "allow is unknown: write rules, allow_list, allow_list_file."),
    ({"rules": [{"label": "a", "patern": "x"}]}, "rules[0].patern is unknown: write label, pattern, kind, region,"),
    ({"rules": [{"pattern": "x"}]}, "rules[0].label is missing"),
    ({"rules": [None]}, "rules[0] is None: write a mapping"),
    ({"rules": [{"label": " ", "pattern": "x"}]}, "rules[0].label is blank"),
    ({"rules": [{"label": "a"}]}, "rules[0] has nothing to find: give one of pattern, kind, deny_list"),
    ({"rules": [{"label": "a", "pattern": "x", "kind": "url"}]}, "rules[0] has pattern and kind: give one of"),
    ({"rules": [{"label": "a", "pattern": "("}]}, "rules[0].pattern is '(', which RE2 refuses (missing ): ()"),
    ({"rules": [{"label": "a", "pattern": "(?=x)"}]}, "rules[0].pattern is '(?=x)', which RE2 refuses"),
    ({"rules": [{"label": "a", "pattern": "x*"}]}, "it matches an empty text"),
    (
        {"rules": [{"label": "a", "kind": "fax"}]},
        "kind is 'fax': give one of email, url, ip, card, iban, phone",
    ),
    ({"rules": [{"label": "a", "kind": "phone", "region": "XX"}]}, "rules[0].region is 'XX'"),
    ({"rules": [{"label": "a", "kind": "url", "region": "DE"}]}, "only the kind phone has a region"),
    ({"rules": [{"label": "a", "kind": "url", "match_case": True}]}, "match_case belongs to deny_list"),
    ({"rules": [{"label": "a", "deny_list": ["x", False]}]}, "rules[0].deny_list[1] is False"),
    ({"rules": [{"label": "a", "deny_list": []}]}, "rules[0].deny_list is empty"),
    ({"rules": [{"label": "a", "deny_list": ["x", " "]}]}, "rules[0].deny_list has a blank term"),
    ({"rules": [{"label": "a", "deny_list_file": "x"}]}, "rules[0].deny_list_file is unknown"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_wrong_rules_are_refused(content: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        Rules(content)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rules:\n- {label: a", "cannot be read (line 2: expected ',' or '}', but got '<stream end>')"),
        ("- label", "hold ['label']: write a mapping"),
        ("rules: [{label: a, deny_list_file: none.txt}]", "none.txt cannot be read"),
        ("rules: [{label: a, deny_list_file: 3}]", "deny_list_file is 3: give the name of a file"),
        ("rules: [{label: a, kind: fax}]", "pii.yaml are wrong: rules[0].kind is 'fax'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pii.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        Rules.read(tmp_path / "pii.yaml")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_library_is_named() -> None:
    program = (
        "import sys; sys.modules['re2'] = None\nimport spanlake\ntry: spanlake.Rules\nexcept Exception as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "platform", capture_output=True, text=True)
    assert done.stdout == "Rules need re2, which is not installed: pip install 'spanlake[rules]'.\n"


def test_rules_that_are_not_read_are_refused() -> None:
    for rules in ("pii.yaml", {"rules": []}):
        with pytest.raises(UserError, match="give Rules.read"):
            Settings.make(["a"], rules=rules)  # type: ignore[arg-type]
