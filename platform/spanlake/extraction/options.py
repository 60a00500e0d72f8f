"""The options of `spanlake extract` that say what an output looks like."""

import argparse

from spanlake.extraction.layout import LAYOUTS, Layout
from spanlake.extraction.redaction import KEY_VARIABLE, STYLES, Redaction, read_key


def add_layout_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the output looks like")
    group.add_argument("--layout", choices=LAYOUTS, default="nested", help="or a row per entity (default: nested)")
    group.add_argument(
        "--key", action="append", default=[], metavar="COLUMN", help="of the source, in each mention; may be repeated"
    )
    group.add_argument(
        "--redact", choices=STYLES, help="add redacted_text: entities as [LABEL], [LABEL:keyed hash] or a fixed mask"
    )
    group.add_argument(
        "--redact-key-file", metavar="FILE", help=f"the key of --redact hash (default: the variable {KEY_VARIABLE})"
    )
    group.add_argument(
        "--drop-text", action="store_true", help="with --redact: leave out the text, and entities' texts"
    )


def read_layout(args: argparse.Namespace) -> Layout:
    """Raises: UserError for options that do not go together, and a key that cannot be used."""
    redaction = None
    if args.redact:
        redaction = Redaction(args.redact, read_key(args.redact_key_file) if args.redact == "hash" else None)
    return Layout(args.layout, tuple(dict.fromkeys(args.key)), redaction, args.drop_text)
