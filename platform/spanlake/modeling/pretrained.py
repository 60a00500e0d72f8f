"""Tokenizers as they come with pretrained encoders and published checkpoints."""

from __future__ import annotations

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import convert_slow_tokenizer
from transformers.utils.hub import cached_file

from spanlake.errors import PackageError

_FILE = "tokenizer.json"


def pretrained_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of the directory or Hub id `source`: its tokenizer.json where there is one, else converted.

    tokenizer.json is read as it is. The transformers library, from version 5 on, rebuilds several families' tokenizers
    from their vocabularies alone; for DeBERTa that loses the normalisation of characters, and with it "…" and "ﬁ".

    Raises `PackageError`, from what stood in the way, where there is no tokenizer that can be read.
    """
    try:
        file = cached_file(source, _FILE, _raise_exceptions_for_missing_entries=False)
        return Tokenizer.from_file(file) if file else _converted(AutoTokenizer.from_pretrained(source))
    except Exception as error:  # of no narrower kind: each format fails in its own way
        raise PackageError(
            f"The tokenizer of {source!r} cannot be read: {str(error).splitlines()[0]}; converting one from a "
            "SentencePiece model needs the package sentencepiece."
        ) from error


def _converted(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    if type(tokenizer).__name__ != "DebertaV2Tokenizer":
        backend: Tokenizer = tokenizer.backend_tokenizer
        return backend
    backend = convert_slow_tokenizer(tokenizer)  # from spm.model itself, with its normalisation
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        backend.add_tokens([token])
    return backend
