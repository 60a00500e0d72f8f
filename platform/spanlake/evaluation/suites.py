"""The suites of benchmark sets that GLiNER's paper reports (Zaratiana et al. 2023, Tables 1 to 4), and open types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spanlake.errors import UserError
from spanlake.evaluation.sets import BenchmarkSet, Split, find_sources, read_set

_CROSSNER = "https://github.com/zliucr/CrossNER"
_MTL_BIO = "https://github.com/cambridgeltl/MTL-Bioinformatics-2016"
_MULTICONER = "https://registry.opendata.aws/multiconer"
_MULTICONER_LABELS = {
    "PER": "person",
    "LOC": "location",
    "CORP": "corporation",
    "GRP": "group",
    "PROD": "product",
    "CW": "creative work",
}


@dataclass(frozen=True)
class Member:
    """A set of a suite. Case and punctuation in names of files and directories do not count."""

    name: str  # as in the paper's table
    known_as: tuple[str, ...]
    where: str  # where to get it
    nested: bool = False


@dataclass(frozen=True)
class Suite:
    name: str
    members: tuple[Member, ...]
    split: Split  # the split that the suite is defined on
    averages: Mapping[str, tuple[str, ...]]  # an average's name -> its sets
    tables: tuple[int, ...] = ()  # of the paper
    renamed: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Missing:
    name: str
    reason: str


def _suite(
    name: str,
    members: tuple[Member, ...],
    split: Split,
    tables: tuple[int, ...] = (),
    groups: Mapping[str, tuple[str, ...]] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Suite:
    averages = {**(groups or {}), "Average": tuple(member.name for member in members)}
    return Suite(name, members, split, averages if len(members) > 1 else {}, tables, renamed)


def _multiconer(name: str, code: str) -> Member:
    known_as = (f"multiconer2022{code}", f"multiconer{code}", f"multiconer22{code}", f"{code}{name}", name, code)
    return Member(name, known_as, _MULTICONER)


_LATIN = {"German": "de", "English": "en", "Spanish": "es", "Dutch": "nl"}
_NON_LATIN = {
    "Bengali": "bn",
    "Persian": "fa",
    "Hindi": "hi",
    "Korean": "ko",
    "Russian": "ru",
    "Turkish": "tr",
    "Chinese": "zh",
}

SUITES = {
    suite.name: suite
    for suite in (
        _suite(
            "ood",
            (
                Member("Movie", ("mit-movie", "movie"), "https://groups.csail.mit.edu/sls/downloads/movie"),
                Member(
                    "Restaurant",
                    ("mit-restaurant", "restaurant"),
                    "https://groups.csail.mit.edu/sls/downloads/restaurant",
                ),
                *(
                    Member(domain, (f"CrossNER_{domain}", domain), _CROSSNER)
                    for domain in ("AI", "Literature", "Music", "Politics", "Science")
                ),
            ),
            "test",
            tables=(1,),
        ),
        _suite(
            "20ner",
            (
                Member("ACE05", ("ACE 2005",), "https://catalog.ldc.upenn.edu/LDC2006T06", nested=True),
                Member("AnatEM", (), _MTL_BIO),
                Member("bc2gm", (), _MTL_BIO),
                Member("bc4chemd", (), _MTL_BIO),
                Member("bc5cdr", (), _MTL_BIO),
                Member(
                    "Broad Twitter",
                    ("Broad Tweet Corpus", "Broad Twitter Corpus", "btc"),
                    "https://github.com/GateNLP/broad_twitter_corpus",
                ),
                Member("CoNLL03", ("CoNLL 2003",), "https://www.clips.uantwerpen.be/conll2003/ner"),
                Member("FabNER", (), "https://huggingface.co/datasets/DFKI-SLT/fabner"),
                Member("FindVehicle", (), "https://github.com/GuanRunwei/FindVehicle"),
                Member(
                    "GENIA",
                    ("GENIA_NER", "genia_nested"),
                    "http://www.geniaproject.org/genia-corpus/term-corpus",
                    nested=True,
                ),
                Member("HarveyNER", (), "https://github.com/brickee/HarveyNER"),
                Member("MIT Movie", ("movie",), "https://groups.csail.mit.edu/sls/downloads/movie"),
                Member("MIT Restaurant", ("restaurant",), "https://groups.csail.mit.edu/sls/downloads/restaurant"),
                Member("MultiNERD", (), "https://github.com/Babelscape/multinerd"),
                Member("ncbi", ("ncbi-disease",), _MTL_BIO),
                Member("OntoNotes", (), "https://catalog.ldc.upenn.edu/LDC2013T19"),
                Member("PolyglotNER", (), "https://huggingface.co/datasets/rmyeid/polyglot_ner"),
                Member("TweetNER7", (), "https://huggingface.co/datasets/tner/tweetner7"),
                Member("WikiANN", ("WikiANN en",), "https://github.com/afshinrahimi/mmner"),
                Member("WikiNeural", ("WikiNeural en",), "https://github.com/Babelscape/wikineural"),
            ),
            "test",
            tables=(2, 4),
        ),
        _suite(
            "multiconer",
            tuple(_multiconer(name, code) for name, code in {**_LATIN, **_NON_LATIN}.items()),
            "test",
            tables=(3,),
            groups={"Latin average": tuple(_LATIN), "Non-Latin average": tuple(_NON_LATIN)},
            renamed=_MULTICONER_LABELS,
        ),
        _suite(
            "open-types",
            (
                Member(
                    "open types",
                    (),
                    "your own: JSON lines of texts that state absent types too (docs/training-data.md)",
                ),
            ),
            "dev",
        ),
    )
}


def read_suite(
    suite: Suite, directory: Path, split: Split, renamed: Mapping[str, str]
) -> tuple[list[BenchmarkSet], list[Missing]]:
    """Returns the sets of a suite in a directory or below it, in the table's order, and the missing ones.

    Raises `UserError` if all are missing, or if one cannot be read.
    """
    here = {_plain(name): source for name, source in find_sources(directory, split).items()}
    names: dict[Split, set[str]] = {
        other: {*map(_plain, find_sources(directory, other))} for other in ("test", "dev", "train")
    }
    found: list[BenchmarkSet] = []
    missing: list[Missing] = []
    for member in suite.members:
        known = [_plain(name) for name in (member.name, *member.known_as)]
        source = next((here[name] for name in known if name in here), None)
        if len(suite.members) == len(here) == 1:
            source = next(iter(here.values()))
        if source is None:
            others = [other for other, present in names.items() if present.intersection(known)]
            reason = f"here is only its --split {' and '.join(others)}" if others else f"get it from {member.where}"
            missing.append(Missing(member.name, reason))
            continue
        own = {**(suite.renamed or {}), **renamed}
        found.append(read_set(member.name, source, split, nested=member.nested, renamed=own))
    if not found:
        said = "; ".join(f"{each.name}: {each.reason}" for each in missing)
        raise UserError(f"{directory} holds none of the sets of {suite.name} with the split {split} ({said}).")
    return found, missing


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())
