"""Makes typed mentions from encyclopedia passages: in "Anna Boch was a Belgian painter" the subject is a painter.

    python tools/make_open_types.py PASSAGES.jsonl.gz OUT.jsonl.gz examples/passages.parquet

The subject of a passage's first sentence gets types: the head nouns after "is" or "was". This yields hundreds of types,
where annotated corpora have a dozen. Passages of the last file are left out, so that the demo shows unseen text. Places
(cities, countries) never become negatives, because many sentences mention them without being about them.
"""

import gzip
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from spanlake.text import word_offsets

COPULA = re.compile(r"\s(?:is|was|are|were)\s+(?:an?|the|one of the)\s+(.+)")
STOP = re.compile(
    r"[,.;:()\"]|\b(?:who|which|that|from|in|of|by|at|for|on|to|with|located|born|known|based|founded|whose|where|released"
    r"|written|directed|published|or|best|as|found|held|used|made|is|was|created|produced|between|near|established|formed"
    r"|played|currently|during|under|set|consisting|recorded|developed|built|headquartered|composed|designed|given|also"
    r"|performed|hosted|owned|manufactured|appearing|native|adapted|starring|featuring|active|operated)\b"
)
HEAD = re.compile(r"[a-z]{3,}(?:-[a-z]+)*")


def listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


VAGUE = listed(
    """
    name title first single one end list type member part form version series example result set second third last
    term number way time year season edition installment entry kind work home private general head son daughter
    wife husband brother sister native american british english french german indian canadian australian japanese
    italian
    """
)
PLACES = listed(
    """
    city town village country state district county province region community municipality island river suburb
    area capital place location settlement commune parish borough neighborhood continent nation territory
    """
)
NEGATIVES = 40  # for each text


class Found(NamedTuple):
    words: list[str]
    first: int
    last: int
    types: list[str]


def head_nouns(phrase: str) -> list[str]:
    """Returns director, film director and screenwriter for "American film director and screenwriter"."""
    types = []
    for part in re.split(r"\band\b", STOP.split(phrase, maxsplit=1)[0])[:2]:
        words = part.split()[-2:]
        if not words or not HEAD.fullmatch(words[-1]) or words[-1] in VAGUE or words[-1].endswith(("ed", "ly")):
            break
        types.append(words[-1])
        if len(words) == 2 and HEAD.fullmatch(words[0]) and words[0] not in VAGUE:
            types.append(" ".join(words))
    return types


def read(passage: str) -> Found | None:
    sentence = re.split(r"(?<=[a-z)\]0-9][.!?])\s", passage.replace("\n", " "), maxsplit=1)[0]
    match = COPULA.search(sentence)
    if match is None or len(sentence) > 400:
        return None
    subject = re.split(r"[(,;]", sentence[: match.start()], maxsplit=1)[0].strip(" \"'“”")
    types = head_nouns(match.group(1))
    start = sentence.find(subject)
    offsets = word_offsets(sentence).tolist()
    inside = [i for i, (first, last) in enumerate(offsets) if first >= start and last <= start + len(subject)]
    if (
        not types
        or not subject
        or len(inside) > 8
        or subject.split()[0] in ("It", "This", "He", "She", "There", "They")
    ):
        return None
    return Found([sentence[first:last] for first, last in offsets], inside[0], inside[-1], types)


def main(source: Path, target: Path, left_out: Path) -> None:
    unseen = set(pq.read_table(left_out, columns=["id"]).column("id").to_pylist())
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        passages = [record["text"] for record in map(json.loads, lines) if record["id"] not in unseen]
    found = [result for result in map(read, passages) if result]
    counts = Counter(kind for result in found for kind in result.types)
    known = {kind for kind, count in counts.items() if count >= 2}
    negatives = sorted(known - PLACES)
    choose = random.Random(0)
    with gzip.open(target, "wt", encoding="utf-8") as out:
        for result in found:
            types = [kind for kind in result.types if kind in known]
            if not types:
                continue
            heads = {kind.split()[-1] for kind in result.types}
            others = [kind for kind in choose.sample(negatives, NEGATIVES) if kind.split()[-1] not in heads]
            spans = [[result.first, result.last, kind] for kind in types]
            out.write(json.dumps({"tokenized_text": result.words, "ner": spans, "negatives": others}) + "\n")
    print(f"{len(found)} sentences of {len(passages)} passages, {len(known)} types")


main(*map(Path, sys.argv[1:]))
