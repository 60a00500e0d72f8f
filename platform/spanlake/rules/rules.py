"""A set of rules: checked once, then applied to texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from spanlake.errors import UserError, one_line, shown
from spanlake.rules.kinds import KINDS, REGIONS, Spans, phones
from spanlake.rules.patterns import compiled, spans
from spanlake.rules.terms import TermFinder, normal_form
from spanlake.strict_yaml import load_yaml
from spanlake.text import replace_surrogates, whole_characters

_PHONE = "phone"
_FINDERS = ("pattern", "kind", "deny_list")


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Rule(_Checked):
    label: str
    pattern: str | None = None
    kind: str | None = None
    region: str | None = None  # of phone numbers without the code of a country
    deny_list: list[str] | None = None
    match_case: bool | None = None  # of the list


class _Content(_Checked):
    rules: list[_Rule] = []
    allow_list: list[str] = []


class Match(NamedTuple):
    """A span that a rule has found: text[start:end] in code points, where end is exclusive."""

    start: int
    end: int
    rule: int  # its place in the rules; an earlier rule has precedence


class Rules:
    """Rules that are ready to find entities. Threads and processes may share them.

    `labels` has the label of each rule.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Takes what a file of rules holds, with all lists in it. Raises UserError if it is wrong."""
        checked = _validated(content)
        if not checked.rules and not checked.allow_list:
            raise UserError("there is no rule: write at least one, or an allow_list.")
        self.content = checked.model_dump(exclude_none=True)
        self.labels = tuple(rule.label for rule in checked.rules)
        self._finders = [_finder(rule, f"rules[{place}]") for place, rule in enumerate(checked.rules)]
        self._allowed = frozenset(map(normal_form, _terms(checked.allow_list, "allow_list")))

    @classmethod
    def read(cls, path: str | Path) -> Rules:
        """Returns the rules of a YAML file. The files that it names are found from its directory.

        Raises UserError for a file that cannot be read, and for rules that are wrong.
        """
        try:
            content = load_yaml(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"The rules {path} cannot be read ({one_line(error)}).") from error
        if not isinstance(content, dict):
            raise UserError(
                f"The rules {path} hold {shown(content)}: write a mapping with `rules`, `allow_list` or both."
            )
        try:
            return cls(_with_lists(content, Path(path).parent))
        except UserError as error:
            raise UserError(f"The rules {path} are wrong: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Rules, (self.content,)

    @property
    def digest(self) -> str:
        """Returns a fingerprint of everything that determines the matches (hex)."""
        return sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def find(self, text: str) -> list[Match]:
        """Returns the matches of all rules in the whole text, without terms that are allowed. Matches may overlap.

        No match begins or ends inside a grapheme cluster.
        Raises UserError for a pattern that takes too long.
        """
        readable = replace_surrogates(text)
        found = [(place, *span) for place, finder in enumerate(self._finders) for span in finder(readable)]
        edges = np.array([span for _, *span in found], np.int64).reshape(-1, 2)
        whole = whole_characters(readable, edges).tolist()
        matches = [Match(start, end, place) for (place, *_), (start, end) in zip(found, whole, strict=True)]
        return [match for match in matches if not self.allows(text[match.start : match.end])]

    def allows(self, surface: str) -> bool:
        """Returns whether a text is in the list of allowed terms, which are never reported."""
        return bool(self._allowed) and normal_form(surface) in self._allowed


def _with_lists(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Returns the content of a file of rules, with the terms of other files in the place of their names."""
    whole = _with_list(content, "allow_list", directory)
    if not isinstance(content.get("rules"), list):
        return whole
    rules = [_with_list(rule, "deny_list", directory) if isinstance(rule, dict) else rule for rule in content["rules"]]
    return whole | {"rules": rules}


def _with_list(values: dict[str, Any], name: str, directory: Path) -> dict[str, Any]:
    """Returns the values with the terms of `NAME_file` added to those of `NAME`."""
    file, terms = values.get(f"{name}_file"), values.get(name, [])
    if f"{name}_file" not in values or not isinstance(terms, list):
        return values
    if not isinstance(file, str):
        raise UserError(f"{name}_file is {shown(file)}: give the name of a file, in quotes.")
    others = {key: value for key, value in values.items() if key != f"{name}_file"}
    return others | {name: [*terms, *_lines(directory / file)]}


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"the list {path} cannot be read ({one_line(error)}).") from error


def _validated(content: Mapping[str, Any]) -> _Content:
    try:
        return _Content.model_validate(content)
    except ValidationError as error:
        raise UserError(_first_problem(error.errors()[0])) from error


def _first_problem(problem: ErrorDetails) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    if problem["type"] == "extra_forbidden":
        model, name = (_Content, "allow_list_file") if len(problem["loc"]) == 1 else (_Rule, "deny_list_file")
        return f"{where} is unknown: write {', '.join([*model.model_fields, name])}."
    if problem["type"] == "missing":
        return f"{where} is missing: every rule has a label."
    if problem["type"] == "model_type":
        return f"{where} is {shown(problem['input'])}: write a mapping, such as {{label: email, kind: email}}."
    advice = "; put it in quotes" if problem["type"] == "string_type" else ""
    return f"{where} is {shown(problem['input'])}: {problem['msg'].lower()}{advice}."


def _finder(rule: _Rule, where: str) -> Callable[[str], Spans]:
    """Returns the function that finds a rule's spans. Raises UserError for a rule that is wrong."""
    if not rule.label.strip():
        raise UserError(f"{where}.label is blank: give the label of its entities.")
    given = [name for name in _FINDERS if getattr(rule, name) is not None]
    if len(given) != 1:
        raise UserError(f"{where} has {' and '.join(given) or 'nothing to find'}: give one of {', '.join(_FINDERS)}.")
    if rule.region is not None and rule.kind != _PHONE:
        raise UserError(f"{where}.region is {rule.region!r}, and only the kind phone has a region: leave it out.")
    if rule.match_case is not None and rule.deny_list is None:
        raise UserError(f"{where}.match_case belongs to deny_list: begin a pattern with (?i) to ignore case.")
    if rule.pattern is not None:
        return _pattern_finder(rule.pattern, where)
    if rule.kind is not None:
        return _kind_finder(rule.kind, rule.region, where)
    if not rule.deny_list:
        raise UserError(f"{where}.deny_list is empty: give at least one term.")
    return TermFinder(_terms(rule.deny_list, f"{where}.deny_list"), bool(rule.match_case)).spans


def _pattern_finder(pattern: str, where: str) -> Callable[[str], Spans]:
    try:
        found = compiled(pattern)
    except ValueError as error:
        raise UserError(
            f"{where}.pattern is {shown(pattern)}, which RE2 refuses ({one_line(error)}): see github.com/google/re2."
        ) from error
    return lambda text: spans(found, text)


def _kind_finder(kind: str, region: str | None, where: str) -> Callable[[str], Spans]:
    if kind == _PHONE:
        if region is not None and region not in REGIONS:
            raise UserError(f"{where}.region is {shown(region)}: give the code of a country, such as GB or DE.")
        return lambda text: phones(text, region)
    if kind not in KINDS:
        raise UserError(f"{where}.kind is {shown(kind)}: give one of {', '.join([*KINDS, _PHONE])}.")
    return KINDS[kind]


def _terms(terms: Sequence[str], where: str) -> list[str]:
    found = [replace_surrogates(term).strip() for term in terms]
    if not all(found):
        raise UserError(f"{where} has a blank term: leave it out.")
    return found
