"""The splitter `gliner2`: the words of the published GLiNER2 checkpoints.

A word is an address of the web or of e-mail, a name after @, or a run of letters, digits and combining marks, also
across `-` and `_`. Every other visible character is a word.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from unicodedata import category

import numpy as np

from spanlake.text import IntArray


def gliner2_splitter() -> Callable[[str], IntArray]:
    """Returns the splitter."""
    marks = "".join(mark for mark in map(chr, range(sys.maxunicode + 1)) if category(mark)[0] == "M")
    letters = rf"[\w{marks}\u200c\u200d]+"
    kinds = [
        r"(?:https?://|www\.)\S+",
        r"[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}",
        r"@[a-z0-9_]+",
        rf"{letters}(?:[-_]{letters})*",
        r"\S",
    ]
    word = re.compile("|".join(kinds), re.IGNORECASE)

    def split(text: str) -> IntArray:
        return np.array([match.span() for match in word.finditer(text)], dtype=np.int64).reshape(-1, 2)

    return split
