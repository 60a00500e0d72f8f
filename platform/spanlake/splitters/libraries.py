"""The splitters that the gliner library names, each over the library that cuts the words.

A library returns the words of a text as strings. Their places are found here, one after the other. Characters that no
word covers are words of their own, so that nothing is lost where a library alters or drops a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock
from typing import Any

import numpy as np

from spanlake.errors import UserError, one_line
from spanlake.text import IntArray, replace_surrogates

_Cut = Callable[[str], Iterable[str]]
_VISIBLE = re.compile(r"\S+")


def _spacy(language: str = "en") -> _Cut:
    import spacy

    nlp = spacy.blank(language)
    nlp.max_length = 2**31  # a limit for parsers, which a blank pipeline does not have
    return lambda text: [token.text for token in nlp.make_doc(text)]


def _mecab() -> _Cut:
    import mecab

    cut: _Cut = mecab.MeCab().morphs
    return cut


def _jieba() -> _Cut:
    import jieba3

    cut: _Cut = jieba3.jieba3().cut_text
    return cut


def _hanlp() -> _Cut:
    import hanlp
    import hanlp.pretrained

    cut: _Cut = hanlp.load(hanlp.pretrained.tok.ALL["FINE_ELECTRA_SMALL_ZH"])
    return cut


def _janome() -> _Cut:
    from janome.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    return lambda text: map(str, tokenizer.tokenize(text, wakati=True))


def _camel() -> _Cut:
    from camel_tools.tokenizers.word import simple_word_tokenize

    cut: _Cut = simple_word_tokenize
    return cut


def _hindi() -> _Cut:
    from indicnlp.tokenize import indic_tokenize

    return lambda text: indic_tokenize.trivial_tokenize(text, lang="hi")


def _stanza() -> _Cut:
    """Chooses the pipeline by the language of the text. Nothing is downloaded, because words may not change later."""
    import stanza

    language_of = _language_detector(seed=42)
    pipelines: dict[str, Any] = {}

    def pipeline(language: str) -> Any:
        if language not in pipelines:
            try:
                pipelines[language] = stanza.Pipeline(
                    language, processors="tokenize", verbose=False, download_method=None
                )
            except Exception as error:  # each kind of missing file raises another kind
                raise UserError(
                    f"The splitter 'stanza' has no model of the language {language!r} here; run "
                    f"`python -c \"import stanza; stanza.download('{language}', processors='tokenize')\"`."
                ) from error
        return pipelines[language]

    def cut(text: str) -> Iterator[str]:
        language = language_of(text) or "en"
        document = pipeline("zh" if language == "zh-cn" else language)(text)
        return (word.text for sentence in document.sentences for word in sentence.words)

    pipeline("en")
    return cut


def _universal() -> _Cut:
    language_of = _language_detector(seed=0)
    chinese, others = _jieba(), _spacy("xx")
    by_language = {"ko": _mecab(), "ja": _janome(), "hi": _hindi(), "ar": _camel()}
    by_language |= dict.fromkeys(("zh-cn", "zh-tw", "zh"), chinese)
    return lambda text: by_language.get(language_of(text) or "", others)(text)


def _language_detector(seed: int) -> Callable[[str], str | None]:
    """Returns a function from a text to its language, None where it has too few letters to tell."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = seed  # of the whole process: without a seed, the library guesses differently each time

    def language_of(text: str) -> str | None:
        try:
            language: str = detect(text)
        except LangDetectException:
            return None
        return language

    return language_of


# For each splitter, what makes it and the packages that it needs.
LIBRARIES: Mapping[str, tuple[Callable[[], _Cut], str]] = {
    "spacy": (_spacy, "spacy"),
    "mecab": (_mecab, "python-mecab-ko"),
    "jieba": (_jieba, "jieba3"),
    "hanlp": (_hanlp, "hanlp"),
    "janome": (_janome, "janome"),
    "camel": (_camel, "camel-tools"),
    "hindi": (_hindi, "indic-nlp-library"),
    "stanza": (_stanza, "stanza langdetect"),
    "universal": (_universal, "langdetect python-mecab-ko janome indic-nlp-library jieba3 camel-tools spacy"),
}


def library_splitter(name: str) -> Callable[[str], IntArray]:
    """Returns the splitter of this name in LIBRARIES. Raises `UserError` where it cannot be loaded."""
    make, packages = LIBRARIES[name]
    try:
        cut = make()
    except UserError:
        raise
    except Exception as error:  # a library without its parts or its data fails in its own way
        raise UserError(
            f"The splitter {name!r} cannot be loaded ({one_line(error)}); run `pip install {packages}`."
        ) from error
    lock = Lock()  # several of the libraries are not safe for threads

    def split(text: str) -> IntArray:
        readable = replace_surrogates(text)
        with lock:
            words = list(cut(readable))
        return np.array(list(place_words(readable, words)), dtype=np.int64).reshape(-1, 2)

    return split


def place_words(text: str, words: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yields the places of the words in turn, and of the visible characters between them."""
    at = 0
    for word in words:
        word = word.strip()
        start = text.find(word, at) if word else -1
        if start < 0:
            continue
        yield from (run.span() for run in _VISIBLE.finditer(text, at, start))
        at = start + len(word)
        yield start, at
    yield from (run.span() for run in _VISIBLE.finditer(text, at))
