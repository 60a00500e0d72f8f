"""The options of `spanlake extract` for the rows that it reads and the layout of the output."""

import argparse
from typing import TYPE_CHECKING

from spanlake.errors import UserError, shown
from spanlake.labels import parse_labels, parse_thresholds, split_names
from spanlake.options import positive

if TYPE_CHECKING:
    from spanlake.extraction.output.layout import Layout
    from spanlake.extraction.output.row_labels import RowLabels
    from spanlake.extraction.output.target import TableOptions
    from spanlake.extraction.source.choice import Choice
    from spanlake.inference.settings import Settings

_LOCALE = "en_US"

# Functions import what needs Arrow themselves, so that `spanlake --help` does not wait for it.


def add_layout_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the output looks like")
    group.add_argument("--layout", choices=("nested", "mentions"), default="nested", help="(default: nested)")
    group.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column of the source to add to each mention; may be repeated",
    )
    group.add_argument(
        "--columns",
        metavar="A,B",
        help="columns of the source in the nested layout, with commas between them (default: all)",
    )
    group.add_argument(
        "--redact",
        choices=("label", "hash", "mask", "surrogate"),
        help="add redacted_text, with entities as [LABEL], [LABEL:keyed hash], a fixed mask, or made-up values",
    )
    group.add_argument(
        "--surrogate-locale", metavar="LOCALE", help=f"the locale of made-up values (default: {_LOCALE})"
    )
    group.add_argument(
        "--vault",
        action="store_true",
        help="with --redact: add the column vault, from which `spanlake restore` and the key bring the text back",
    )
    group.add_argument(
        "--redact-key-file",
        metavar="FILE",
        help="a file with the key of hashes, surrogates and vaults (default: the variable SPANLAKE_REDACTION_KEY)",
    )
    group.add_argument(
        "--drop-text", action="store_true", help="with --redact: leave out the text and the texts of entities"
    )


def add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text-column",
        action="append",
        metavar="NAME",
        help="the column with the texts; may be repeated (default: text)",
    )
    parser.add_argument(
        "--labels-column",
        metavar="NAME",
        help="a column with the labels of each row; --labels are then those of rows where it is null",
    )


def read_text_columns(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(args.text_column or ["text"]))


def read_labels(args: argparse.Namespace) -> "tuple[Settings, RowLabels | None]":
    """Returns the settings of all rows, and the column with the labels of single rows.

    Raises UserError if there are neither labels nor a column, and for values that are not allowed.
    """
    from spanlake.extraction.output.row_labels import RowLabels
    from spanlake.inference.settings import Settings, read_rules, read_settings

    if args.labels_column is None:
        if args.labels is None:
            raise UserError("There are no labels: give --labels, or --labels-column for the labels of each row.")
        asked = read_settings(args.labels, args.threshold, args.nested, args.multi_label, args.rules)
        return asked.joining(args.join_adjacent), None
    threshold, by_label = parse_thresholds(args.threshold)
    Settings.make(list(by_label) or ["any"], threshold).with_thresholds(by_label)  # refuses wrong thresholds
    row_labels = RowLabels(args.labels_column, threshold, by_label)
    rules = read_rules(args.rules) if args.rules else None
    if args.labels is None:
        none = Settings((), (), (), args.nested, args.multi_label, rules=rules)
        return none.joining(args.join_adjacent), row_labels
    found = parse_labels(args.labels)
    settings = Settings.make(found.labels, threshold, args.nested, args.multi_label, rules)
    own = {name: value for name, value in {**found.thresholds, **by_label}.items() if name in settings.names}
    return settings.with_thresholds(own).joining(args.join_adjacent), row_labels


def add_choice_options(parser: argparse.ArgumentParser, *, with_since: bool) -> None:
    group = parser.add_argument_group("the rows of the source")
    if with_since:
        group.add_argument(
            "--since",
            metavar="VERSION|DIR",
            help="only what has changed in a table since a version or snapshot, or since the newest complete output "
            "in a directory; the column _change_type says insert or delete",
        )
    group.add_argument(
        "--where", metavar="SQL", help="a condition on columns of the source, such as \"lang = 'en' AND year >= 2020\""
    )
    group.add_argument("--limit", type=positive, metavar="N", help="the first N rows that fulfil --where")


def add_table_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a table for the rows")
    group.add_argument(
        "--into",
        metavar="TABLE",
        help="at the end, add the rows to delta:PATH, iceberg:C.N.TABLE, or the Parquet files of parquet:DIR",
    )
    group.add_argument(
        "--partition-by", metavar="A,B", help="columns that partition a new table, with commas between them"
    )
    group.add_argument(
        "--merge-on",
        metavar="A,B",
        help="columns of a key: a row replaces that with the same key in the table, and deleted rows are deleted",
    )
    group.add_argument(
        "--evolve",
        action="store_true",
        help="add the columns that the table lacks, and widen those that are too narrow",
    )


def read_table_options(args: argparse.Namespace) -> "TableOptions":
    """Returns how rows are added to a table. Raises UserError for options that do not go together."""
    from spanlake.extraction.output.target import TableOptions

    if args.into is None:
        for option, value in (
            ("--partition-by", args.partition_by),
            ("--merge-on", args.merge_on),
            ("--evolve", args.evolve),
        ):
            if value:
                raise UserError(f"{option} belongs to --into TABLE: give both, or neither.")
    if args.merge_on and args.layout == "mentions":
        raise UserError("--merge-on belongs to the nested layout: with --layout mentions, several rows have one key.")
    return TableOptions(_names(args.partition_by, "--partition-by"), _names(args.merge_on, "--merge-on"), args.evolve)


def _names(argument: str | None, option: str) -> tuple[str, ...]:
    if argument is None:
        return ()
    names = tuple(dict.fromkeys(split_names(argument, "column")))
    if not all(names):
        raise UserError(f"{option} {shown(argument)} lacks a name: give names with commas between them.")
    return names


def read_choice(args: argparse.Namespace) -> "Choice":
    """Returns the choice of rows that the options describe. Raises UserError for a condition that is not supported."""
    from spanlake.extraction.source.choice import Choice
    from spanlake.extraction.source.where import parse_where

    return Choice(None if args.where is None else parse_where(args.where), args.limit)


def read_layout(args: argparse.Namespace, sourced: bool = False) -> "Layout":
    """Returns the layout that the options describe. With `sourced`, entities say what has found them.

    Raises UserError for options that do not go together, and for a key that cannot be used.
    """
    from spanlake.extraction.output.layout import Layout
    from spanlake.redaction import KEY_VARIABLE, KEYED, Redaction, read_key

    if args.vault and not args.redact:
        raise UserError("--vault keeps what --redact replaces: give --redact too.")
    if args.surrogate_locale and args.redact != "surrogate":
        raise UserError("--surrogate-locale belongs to --redact surrogate: give both, or neither.")
    keyed = args.vault or args.redact in KEYED
    if args.redact_key_file and not keyed:
        raise UserError(f"--redact-key-file belongs to --redact {' or '.join(KEYED)}, or to --vault: give one of them.")
    key = read_key(args.redact_key_file) if keyed else None
    if keyed and key is None:
        cause = "--vault" if args.vault else f"--redact {args.redact}"
        raise UserError(f"{cause} needs a key: set {KEY_VARIABLE}, or give --redact-key-file FILE.")
    redaction = Redaction(args.redact, key, args.vault, args.surrogate_locale or _LOCALE) if args.redact else None
    columns = None if args.columns is None else _names(args.columns, "--columns")
    return Layout(args.layout, tuple(dict.fromkeys(args.key)), redaction, args.drop_text, columns, sourced)
