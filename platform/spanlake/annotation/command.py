"""`spanlake annotate`."""

import argparse
import json
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from spanlake.chat.options import add_endpoint_options, read_endpoint, read_price
from spanlake.errors import UserError
from spanlake.extraction.options import add_choice_options, read_choice
from spanlake.options import positive

if TYPE_CHECKING:
    from spanlake.annotation.output import Counts
    from spanlake.annotation.spending import Spending
    from spanlake.chat.endpoint import Price
    from spanlake.extraction.output.ledger import Ledger

# Functions import everything else themselves, so that `spanlake predict --help` does not wait for Arrow.

_LEAST_UNIT_ROWS = 64
_TYPES_SHOWN = 12


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `annotate`. It sets `run`, a function from the parsed arguments to an exit code."""
    parser = subparsers.add_parser("annotate", help="make training data of plain texts, with a language model")
    parser.description = (
        "Ask a language model for the mentions in each text, with types in levels. Run the same command to resume."
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="Parquet, JSON lines or CSV: a file, directory or glob; delta:… or iceberg:…"
    )
    parser.add_argument("output", metavar="OUTPUT", help="a directory: new, empty, or written by the same call")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model's name at the endpoint")
    add_endpoint_options(parser, required=True)
    parser.add_argument(
        "--budget",
        metavar="LIMIT",
        help="stop when the output has cost so much: tokens, as in 500000, or money with --price, as in 2.50USD",
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="(default: text)")
    parser.add_argument(
        "--unit-rows",
        type=positive,
        metavar="N",
        help="rows in one committed unit (default: 64, or 8 for each question)",
    )
    parser.add_argument("--retry-dead", action="store_true", help="ask again about rows that could not be annotated")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    add_choice_options(parser, with_since=False)
    parser.set_defaults(run=_annotate)


def _annotate(args: argparse.Namespace) -> int:
    if find_spec("sqlglot") is None:  # for --where
        raise UserError("`spanlake annotate` needs sqlglot, which is not installed: pip install 'spanlake[ray]'.")
    from spanlake.annotation.output import Request, counts, read_manifest
    from spanlake.annotation.run import annotate
    from spanlake.annotation.spending import read_budget
    from spanlake.extraction.source.open import read_source
    from spanlake.extraction.source.tables import pinned
    from spanlake.storage import locate

    endpoint, price, choice = read_endpoint(args), read_price(args), read_choice(args)
    budget = read_budget(args.budget, price)
    output = locate(args.output)
    begun = read_manifest(output)
    source = read_source(
        pinned(args.source, begun["source"]["uri"] if begun else None), (args.text_column,), choice.columns
    )
    choice.check(source)
    request = Request(
        source=source,
        output=output,
        text_column=args.text_column,
        model=endpoint.model,
        endpoint=endpoint.shown,
        unit_rows=args.unit_rows or max(_LEAST_UNIT_ROWS, 8 * endpoint.concurrency),
        choice=choice,
    )
    try:
        ledger, spending = annotate(request, endpoint, budget=budget, price=price, retry_dead=args.retry_dead, say=_say)
    except KeyboardInterrupt:
        _say("stopped; finished rows are kept, and the same command goes on from there.")
        return 130
    summary = counts(ledger)
    print(_json(ledger, summary, spending, price) if args.json else _sentence(ledger, summary, spending, price))
    return 0


def _json(ledger: "Ledger", summary: "Counts", spending: "Spending", price: "Price | None") -> str:
    document = {"output": ledger.output.uri, **vars(summary), **spending.usage.to_dict(price)}
    return json.dumps(document, ensure_ascii=False, indent=2)


def _sentence(ledger: "Ledger", summary: "Counts", spending: "Spending", price: "Price | None") -> str:
    types = ", ".join(f"{label} {count:,}" for label, count in summary.types.most_common(_TYPES_SHOWN))
    parts = [
        f"{ledger.output.uri} has {summary.rows - summary.dead:,} annotated texts of {summary.rows:,}, with "
        f"{summary.mentions:,} mentions of {len(summary.types):,} types" + (f" ({types})" if types else "")
    ]
    if summary.dead:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.reasons.most_common())
        parts.append(f"{summary.dead:,} dead rows in _dead: {reasons}")
    if summary.dropped:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in summary.dropped.items())
        parts.append(f"dropped mentions: {reasons}")
    parts.append(spending.usage.sentence(price))
    return "; ".join(parts)


def _say(message: str) -> None:
    print(f"spanlake: {message}", file=sys.stderr, flush=True)
