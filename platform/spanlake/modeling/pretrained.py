"""Reads the tokenizers of pretrained encoders and published checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from spanlake.errors import PackageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILE = "tokenizer.json"


def pretrained_tokenizer(source: str) -> Tokenizer:
    """Returns the tokenizer of the directory or Hub id `source`: its tokenizer.json, or else a converted tokenizer.

    It reads tokenizer.json directly. The transformers library, from version 5 on, rebuilds the tokenizers of several
    families from their vocabularies alone. For DeBERTa that loses the normalisation of characters such as "…" and "ﬁ".

    Raises `PackageError`, with the cause attached, where no tokenizer can be read.
    """
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(source, _FILE, _raise_exceptions_for_missing_entries=False)
        return Tokenizer.from_file(file) if file else _converted(AutoTokenizer.from_pretrained(source))
    except Exception as error:  # each format fails in its own way
        raise PackageError(
            f"The tokenizer of {source!r} cannot be read: {str(error).splitlines()[0]}; to convert a SentencePiece "
            "model, install the package sentencepiece."
        ) from error


def _converted(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    if type(tokenizer).__name__ != "DebertaV2Tokenizer":
        backend: Tokenizer = tokenizer.backend_tokenizer
        return backend
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    backend = convert_slow_tokenizer(tokenizer)  # reads spm.model, with its normalisation
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        backend.add_tokens([token])
    return backend
