"""Lists of terms that are found in texts, or that are never reported."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

import regex
from ahocorasick_rs import AhoCorasick, MatchKind

_SPACE = re.compile(r"\s")
_SPACES = re.compile(" {2,}")
_IN_WORD = regex.compile(r"[\w\p{M}]")
# Scripts that put no spaces between words, so that a term may begin and end between any two letters.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


class TermFinder:
    """Finds whole terms, in time that does not depend on their number.

    A term matches in composed and in decomposed Unicode, and with any white space between its words.
    """

    def __init__(self, terms: Collection[str], match_case: bool) -> None:
        self._match_case = match_case
        words = [" ".join(term.split()) for term in terms]
        forms = {folded(unicodedata.normalize(form, term), match_case) for term in words for form in ("NFC", "NFD")}
        self._automaton = AhoCorasick(sorted(forms), matchkind=MatchKind.Standard)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields the start and end (exclusive) of each term, in code points. Of overlapping terms, the first counts;
        of terms with the same start, the longest.
        """
        searched, places = _single_spaced(folded(text, self._match_case))
        found = self._automaton.find_matches_as_indexes(searched, overlapping=True)
        spans = ((places[start], places[end - 1] + 1) for _, start, end in found)
        position = 0
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            if start >= position and not _splits_word(text, start) and not _splits_word(text, end):
                yield start, end
                position = end


def folded(text: str, match_case: bool) -> str:
    """Returns the text with a space for each white space and, unless the case counts, in lower case.

    The length stays the same, so that places in both texts agree.
    """
    spaced = _SPACE.sub(" ", text)
    if match_case:
        return spaced
    lower = spaced.lower()
    if len(lower) != len(spaced):  # İ has two code points in lower case
        lower = "".join(character.lower()[0] for character in spaced)
    return lower.replace("ς", "σ")  # which of the two is lower case of Σ depends on its place in the word


def _single_spaced(text: str) -> tuple[str, Sequence[int]]:
    """Returns the text with one space for each run of spaces, and the place in the text of each character of it."""
    if not _SPACES.search(text):
        return text, range(len(text))
    places = [place for place, character in enumerate(text) if character != " " or text[place - 1 : place] != " "]
    return "".join(text[place] for place in places), places


def normal_form(text: str) -> str:
    """Returns one form for all spellings of a term that differ in case, Unicode composition or white space."""
    return " ".join(unicodedata.normalize("NFC", folded(text, match_case=False)).split())


def _splits_word(text: str, place: int) -> bool:
    """Returns whether a place is inside a word."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    joined = bool(_IN_WORD.match(before) and _IN_WORD.match(after))
    return joined and not (_UNSPACED.match(before) or _UNSPACED.match(after))
