"""The splitters by name. A splitter cuts a text into words, and is part of a model's package.

A splitter takes any string and returns int64 [W, 2]: the start and end (exclusive) of each word in code points. The
offsets increase, and the words do not overlap. Only whitespace lies between words, so no other character is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

from spanlake.errors import UserError, shown
from spanlake.splitters.gliner2 import gliner2_splitter
from spanlake.splitters.libraries import LIBRARIES, library_splitter
from spanlake.splitters.unicode import unicode_splitter
from spanlake.text import IntArray, word_offsets

Splitter = Callable[[str], IntArray]
SplitterName = Literal[
    "gliner",
    "gliner2",
    "unicode",
    "spacy",
    "mecab",
    "jieba",
    "hanlp",
    "janome",
    "camel",
    "hindi",
    "stanza",
    "universal",
]
SPLITTERS: tuple[str, ...] = get_args(SplitterName)
assert {*SPLITTERS} == {"gliner", "gliner2", "unicode", *LIBRARIES}


@cache
def find_splitter(name: str) -> Splitter:
    """Returns the splitter of this name.

    - `gliner`: the words of the published GLiNER checkpoints, a regular expression. In a script without spaces, a
      clause is one word.
    - `gliner2`: the words of the published GLiNER2 checkpoints, a regular expression too.
    - `unicode`: the words of UAX 29, with ICU's dictionaries for scripts without spaces.
    - the other names: those that the gliner library gives to the splitters of other libraries.

    Raises `UserError` for another name, and where the splitter's library or its data are not installed.
    """
    if name == "gliner":
        return word_offsets
    if name == "gliner2":
        return gliner2_splitter()
    if name == "unicode":
        return unicode_splitter()
    if name in LIBRARIES:
        return library_splitter(name)
    raise UserError(f"The splitter {shown(name)} is unknown; this version has {', '.join(SPLITTERS)}.")
