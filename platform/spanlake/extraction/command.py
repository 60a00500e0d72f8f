"""`spanlake extract`, `spanlake audit`, `spanlake show`, `spanlake report` and `spanlake restore`."""

import argparse
import json
import sys
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from spanlake.errors import UserError, one_line
from spanlake.extraction.options import (
    add_choice_options,
    add_layout_options,
    add_table_options,
    add_text_options,
    read_choice,
    read_labels,
    read_layout,
    read_table_options,
    read_text_columns,
)
from spanlake.options import (
    add_labels_option,
    add_model_options,
    add_rules_option,
    add_selection_options,
    add_threshold_option,
    positive,
)

if TYPE_CHECKING:
    from spanlake.extraction.output.ledger import Request

# Functions import everything else themselves, so that `spanlake predict --help` does not wait for Arrow and Ray.

_DEVICES = ("auto", "cpu", "cuda")
_PROBLEMS_SHOWN = 20
_STOPPED = "stopped; committed units stay, and the same command continues from there."


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds the commands. Each sets `run`, a function from the parsed arguments to an exit code."""
    _add_extract(subparsers.add_parser("extract", help="extract entities from files and tables, on Ray"))
    audit = subparsers.add_parser("audit", help="prove that an output has every source row exactly once")
    audit.add_argument("output", metavar="OUTPUT", help="a directory that `spanlake extract` has written")
    audit.set_defaults(run=_run_audit)
    show = subparsers.add_parser("show", help="show counts and sample passages of an output")
    show.add_argument("output", metavar="OUTPUT", help="a directory that `spanlake extract` has written")
    show.add_argument("--examples", type=_count, default=5, metavar="N", help="passages to print (default: 5)")
    show.set_defaults(run=_run_show)
    restore = subparsers.add_parser("restore", help="undo the redaction of an output, with its vault and its key")
    restore.add_argument("output", metavar="OUTPUT", help="a directory that `spanlake extract … --vault` has written")
    restore.add_argument("directory", metavar="DIRECTORY", help="where to write the restored rows: new or empty")
    restore.add_argument("--redact-key-file", metavar="FILE", help="(default: the variable SPANLAKE_REDACTION_KEY)")
    restore.set_defaults(run=_run_restore)
    report = subparsers.add_parser("report", help="write one HTML file about an output")
    report.add_argument("output", metavar="OUTPUT", help="a directory that `spanlake extract` has written")
    report.add_argument("--html", default="report.html", metavar="FILE", help="(default: report.html)")
    report.set_defaults(run=_run_report)


def _add_extract(parser: argparse.ArgumentParser) -> None:
    parser.description = "Read a text column, and write every row with its entities. Run the same command to resume."
    parser.add_argument(
        "source", metavar="SOURCE", help="Parquet, JSON lines or CSV: a file, directory or glob; delta:… or iceberg:…"
    )
    parser.add_argument("output", metavar="OUTPUT", help="a directory: new, empty, or written by the same call")
    add_labels_option(parser, required=False)
    add_model_options(parser)
    add_text_options(parser)
    add_threshold_option(parser)
    add_selection_options(parser)
    add_rules_option(parser)
    parser.add_argument(
        "--workers",
        type=_range,
        metavar="N|MIN:MAX",
        help="number of workers (default: as many as fit the cluster)",
    )
    parser.add_argument(
        "--unit-rows", type=positive, metavar="N", help="rows in one committed unit (default: 64 to 2048)"
    )
    parser.add_argument(
        "--max-error-rate",
        type=_share,
        default=1.0,
        metavar="R",
        help="stop when more than this share of rows has failed",
    )
    parser.add_argument("--retry-errors", action="store_true", help="extract units with failed rows again")
    parser.add_argument("--overwrite", action="store_true", help="first delete the existing output in OUTPUT")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    add_choice_options(parser, with_since=True)
    add_layout_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="extract some rows, print an estimate, write nothing")
    add_table_options(parser)
    parser.set_defaults(run=_run_extract)


def _range(text: str) -> tuple[int, int]:
    bounds = [int(part) if part.isdecimal() else 0 for part in text.split(":")]
    if not 1 <= bounds[0] <= bounds[-1] or len(bounds) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1, or two such numbers, as in 2:8")
    return bounds[0], bounds[-1]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


# --- extract ------------------------------------------------------------------------------------------------------


def _run_extract(args: argparse.Namespace) -> int:
    if find_spec("ray") is None:
        raise UserError("`spanlake extract` needs Ray, which is not installed: pip install 'spanlake[ray]'.")
    table_options = read_table_options(args)
    request = _request(args)
    from spanlake.extraction.output.dataset import Apart, DatasetTarget
    from spanlake.extraction.output.fit import check_values
    from spanlake.extraction.output.lease import check_free
    from spanlake.extraction.output.ledger import discard, read_ledger
    from spanlake.extraction.output.merge import check_source_keys
    from spanlake.extraction.output.publish import open_target, publish
    from spanlake.extraction.run.execute import execute, not_read
    from spanlake.extraction.run.pipeline import Terminated
    from spanlake.extraction.source.choice import Choice
    from spanlake.inference.extractor import Extractor
    from spanlake.package import absolute_name

    target = None
    if args.into:
        apart = [Apart(request.source.root, request.source.deep), Apart(request.output, deep=True)]
        target = open_target(args.into, request.output_schema, request.source.uri, table_options, apart)
        if not isinstance(target, DatasetTarget):
            check_values(str(target), request.source, request.output_schema)
    if table_options.merge_on and request.choice == Choice():
        check_source_keys(request.source, request.text_columns, table_options.merge_on)
    if args.dry_run:
        return _dry_run(request, args)
    if request.source.ignored:
        _say(not_read(request.source.ignored))
    # Workers have another working directory.
    load = partial(Extractor.load, absolute_name(args.model), precision=args.precision)
    if args.overwrite:
        check_free(request.output)
        discard(request.output)
    try:
        summary = execute(
            request,
            load,
            workers=args.workers,
            device=args.device,
            say=_say,
            max_error_rate=args.max_error_rate,
            retry_errors=args.retry_errors,
        )
    except KeyboardInterrupt:
        _say(_STOPPED)
        return 130
    except Terminated:
        _say(_STOPPED)
        return 143
    for problem in summary.problems:
        _say(problem)
    print(json.dumps(summary.as_json(), ensure_ascii=False, indent=2) if args.json else summary.as_line())
    if summary.problems:
        return 1
    if target:
        added = publish(read_ledger(request.output), target)
        _say(f"{added:,} units added to {target}" if added else f"{target} already has all rows")
    return 0


def _dry_run(request: "Request", args: argparse.Namespace) -> int:
    from rich.console import Console

    from spanlake.extraction.run import estimate
    from spanlake.inference.extractor import Extractor

    extractor = Extractor.load(args.model, device=args.device, precision=args.precision)
    sample, workers = estimate.sample(request, extractor), args.workers[1] if args.workers else 1
    if args.json:
        print(json.dumps(sample.as_json(workers), ensure_ascii=False, indent=2))
    else:
        estimate.draw(sample, workers, Console())
    return 0


def _request(args: argparse.Namespace) -> "Request":
    """Returns the request of a call, after every check that is possible before anything is written."""
    from spanlake.extraction.output.history import find_since
    from spanlake.extraction.output.ledger import Request, read_manifest
    from spanlake.extraction.output.plan import default_unit_rows
    from spanlake.extraction.source.changes import read_changes
    from spanlake.extraction.source.model import CHANGE
    from spanlake.extraction.source.open import read_source
    from spanlake.extraction.source.tables import TableName, pinned
    from spanlake.storage import locate

    if args.device not in _DEVICES:
        raise UserError(
            f"The device {args.device!r} is unknown: give one of {', '.join(_DEVICES)}. Ray chooses the GPU."
        )
    (settings, row_labels), text_columns = read_labels(args), read_text_columns(args)
    layout, choice = read_layout(args, sourced=settings.rules is not None), read_choice(args)
    output = locate(args.output)
    begun = None if args.overwrite else read_manifest(output)
    uri = pinned(args.source, begun["source"]["uri"] if begun else None)
    columns = [] if row_labels is None else [row_labels.column]
    wanted = None if layout.columns is None else choice.columns.union(columns, layout.columns)
    if args.since is None:
        if begun and "since" in begun["source"]:
            raise UserError(f"{output.uri} began with --since: give it again, or choose another output directory.")
        source = read_source(uri, text_columns, wanted, choice.where)
    else:
        since = find_since(uri, args.since, output, begun, args.into)
        if since is None:
            _say(f"there is no earlier output of {uri} in {args.since}, so all rows count as added")
        source = read_changes(TableName.of(uri, "--since"), since, text_columns, wanted)
        layout = layout.with_column(CHANGE)
    layout.check(source.schema, text_columns)
    choice.check(source)
    if row_labels:
        row_labels.check(source.schema)
    # This imports torch, which is slow, so the quick checks come first.
    from spanlake.inference.hardware import choose_device, choose_precision
    from spanlake.inference.planning import group_labels
    from spanlake.package import open_package

    choose_precision(args.precision, choose_device("cpu"))  # a name that is unknown here is also unknown to workers
    package = open_package(args.model)
    group_labels(settings, package.tokenizer, package.config)  # refuses labels that are too long for the model
    return Request(
        source=source,
        output=output,
        text_columns=text_columns,
        settings=settings.calibrated(package.calibration),
        model_name=package.name,
        model_fingerprint=package.fingerprint,
        precision=args.precision,
        unit_rows=args.unit_rows or default_unit_rows(min(source.rows, choice.limit or source.rows)),
        layout=layout,
        choice=choice,
        row_labels=row_labels,
    )


def _say(message: str) -> None:
    print(f"spanlake: {message}", file=sys.stderr, flush=True)


# --- reading an output --------------------------------------------------------------------------------------------


def _run_audit(args: argparse.Namespace) -> int:
    from spanlake.extraction.output.audit import audit
    from spanlake.extraction.output.ledger import read_ledger
    from spanlake.storage import locate

    ledger = read_ledger(locate(args.output))
    result = audit(ledger)
    try:
        ledger.note_damaged(result.damaged)
    except UserError as error:  # the answer of the audit does not depend on it
        _say(f"the damaged units are not recorded, so `spanlake extract` will not extract them again: {error}")
    for problem in result.problems[:_PROBLEMS_SHOWN]:
        _say(problem)
    if len(result.problems) > _PROBLEMS_SHOWN:
        _say(f"and {len(result.problems) - _PROBLEMS_SHOWN:,} more problems")
    print(json.dumps(result.as_json(ledger.manifest["model"]), ensure_ascii=False, indent=2))
    return 0 if result.complete else 1


def _run_show(args: argparse.Namespace) -> int:
    from rich.console import Console

    from spanlake.extraction.output.ledger import read_ledger
    from spanlake.extraction.output.show import draw, glance
    from spanlake.storage import locate

    ledger = read_ledger(locate(args.output))
    draw(ledger, glance(ledger, args.examples), Console())
    return 0


def _run_restore(args: argparse.Namespace) -> int:
    from spanlake.extraction.output.ledger import read_ledger
    from spanlake.extraction.output.restore import restore
    from spanlake.redaction import KEY_VARIABLE, read_key
    from spanlake.storage import locate

    key = read_key(args.redact_key_file)
    if key is None:
        raise UserError(f"`spanlake restore` needs the key: set {KEY_VARIABLE}, or give --redact-key-file FILE.")
    rows = restore(read_ledger(locate(args.output)), locate(args.directory), key)
    print(f"{args.directory} holds {rows:,} rows with their texts")
    return 0


def _run_report(args: argparse.Namespace) -> int:
    from spanlake.extraction.output.ledger import read_ledger
    from spanlake.extraction.output.report import report
    from spanlake.storage import locate

    page = report(read_ledger(locate(args.output)))
    try:
        with open(args.html, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"--html {args.html} cannot be written ({one_line(error)}): name another file.") from error
    print(args.html)
    return 0
