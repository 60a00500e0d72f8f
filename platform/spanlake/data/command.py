"""`spanlake data prepare`."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from spanlake.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Functions import everything else themselves, so that `spanlake predict --help` does not wait for Arrow.

_FORMATS = ("auto", "conversations", "gliner", "tagged", "spans", "sentences", "prepared")
_TYPES_SHOWN = 12


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `data` with its actions. Each sets `run`, a function from the parsed arguments to an exit code."""
    parser = subparsers.add_parser("data", help="prepare data sets for training")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parser))
    prepare = actions.add_parser("prepare", help="convert data sets of any format to the training format")
    prepare.description = "Read annotated texts in any format. Write Parquet for training, and statistics."
    prepare.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="JSON or JSON lines (plain or .gz), Parquet, CoNLL, a directory of these or of `datasets`, or a Hub id; "
        "add :SPLIT to the last two to read another split than train",
    )
    prepare.add_argument(
        "--output", required=True, metavar="DIR", help="a directory or URI: new, empty, or written by the same call"
    )
    prepare.add_argument(
        "--format", choices=_FORMATS, default="auto", help="the format of every record (default: told by its keys)"
    )
    prepare.add_argument(
        "--max-width", type=int, default=12, metavar="K", help="words in the longest span (default: 12)"
    )
    prepare.add_argument(
        "--splitter",
        default="gliner",
        metavar="NAME",
        help="what cuts words: gliner, unicode (for every script) or another that models have (default: gliner)",
    )
    prepare.add_argument(
        "--max-bad-rate",
        type=float,
        default=0.01,
        metavar="R",
        help="largest share of unreadable records (default: 0.01)",
    )
    prepare.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="rename a type, for example PER=person"
    )
    prepare.add_argument("--json", action="store_true", help="print the statistics as JSON")
    prepare.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    from spanlake.data.prepare import prepare
    from spanlake.storage import locate

    statistics = prepare(
        args.sources,
        locate(args.output),
        form=args.format,
        max_width=args.max_width,
        max_bad_rate=args.max_bad_rate,
        renamed=dict(map(_renaming, args.rename)),
        splitter=args.splitter,
    )
    if args.json:
        print(json.dumps(statistics))
        return 0
    for source in statistics["sources"]:
        print(_line(source))
        for bad in source["first_bad"]:
            print(f"  not read: {bad}", file=sys.stderr)
    print(f"{args.output} holds {statistics['examples']:,} examples with {statistics['mentions']:,} mentions.")
    return 0


def _renaming(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    if not old.strip() or not new.strip():
        raise UserError(f"--rename {text!r} does not have the form OLD=NEW, such as PER=person.")
    return old, new


def _line(source: "Mapping[str, Any]") -> str:
    types = [f"{name} {count:,}" for name, count in list(source["types"].items())[:_TYPES_SHOWN]]
    rest = len(source["types"]) - len(types)
    levels = f"{source['mentions_in_levels']:,} with several types, " if source.get("mentions_in_levels") else ""
    parts = [
        f"{source['examples']:,} examples ({source['examples_without_mentions']:,} without mentions, the longest of "
        f"{source['longest_text']:,} words)",
        f"{source['mentions']:,} mentions ({levels}the longest of {source['longest_mention']} words)",
        f"{len(source['types']):,} types: {', '.join(types)}" + (f" and {rest:,} more" if rest else ""),
    ]
    counts = {
        "dropped": source["dropped"],
        "kept for scoring but not trained": source["unusable"],
        "not read": {"records": source["bad_records"], "files": len(source["files_not_read"])},
    }
    for name, reasons in counts.items():
        said = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.items() if count]
        if said:
            parts.append(f"{name}: {', '.join(said)}")
    return f"{source['name']}: " + "; ".join(parts)
