"""`spanlake evaluate`; it adds `spanlake calibrate` too."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanlake.chat.options import add_endpoint_options, read_endpoint, read_price
from spanlake.errors import UserError, shown
from spanlake.evaluation.calibrate import add_calibrate
from spanlake.options import add_model_options, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spanlake.evaluation.baseline import Answers
    from spanlake.evaluation.report import Report
    from spanlake.evaluation.results import Evaluation
    from spanlake.evaluation.scores import ModelFacts, Outcome
    from spanlake.evaluation.sets import BenchmarkSet

# Everything else is imported where it is used: `spanlake --help` does not wait for torch.

_SUITES = ("ood", "20ner", "multiconer", "open-types")
_MODEL = "mini"
_STYLES = ("conversation", "tuples")
_MOST_THRESHOLDS = 1_000
_REPORTS = (".html", ".json", ".md")
_CURVES_FROM = 0.05  # the lowest threshold of a report's curves


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `evaluate` and `calibrate`. Each sets `run`, a function from the parsed arguments to an exit code."""
    add_calibrate(subparsers)
    parser = subparsers.add_parser("evaluate", help="exact-match F1 on benchmark sets")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="a set, a directory of sets, a file, or the Hub id of a data set"
    )
    parser.add_argument("--suite", choices=_SUITES, help="the sets and averages of the paper's tables, or open types")
    parser.add_argument("--split", choices=("train", "dev", "test"), help="(default: the suite's, else test)")
    parser.add_argument(
        "--threshold",
        metavar="T",
        help="entities score above it (default: the model's own, else 0.5); several with commas, or FROM:TO:STEP",
    )
    parser.add_argument("--nested", action="store_true", help="for sets with entities within entities")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="ask for a type by another name: PER=person"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="number of workers of a Ray cluster")
    parser.add_argument("--against", metavar="MODEL", help="compare with another model on the same sets")
    parser.add_argument(
        "--report",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="write a report, as .html, .json or .md; may be repeated",
    )
    parser.add_argument(
        "--published", type=Path, metavar="FILE", help="more published rows for the report; docs/evaluation.md"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with scores by label")
    add_model_options(parser)
    add_endpoint_options(parser, required=False)
    parser.add_argument(
        "--style",
        choices=_STYLES,
        help="ask the endpoint for one type at a time, or for tuples of all types (default: tuples)",
    )
    parser.set_defaults(run=_evaluate, model=None)


def _evaluate(args: argparse.Namespace) -> int:
    from spanlake.evaluation.published import published_rows
    from spanlake.evaluation.report import Report

    _check_endpoint(args)
    for path in args.report:
        if path.suffix not in _REPORTS or not path.absolute().parent.is_dir():
            raise UserError(f"The report {path} must end in {', '.join(_REPORTS)} and lie in a directory that exists.")
    published = published_rows(args.suite, args.published) if args.suite else []
    thresholds = [] if args.threshold is None else parse_thresholds(args.threshold)
    report = Report(*_evaluations(args, thresholds), published)
    if args.json:
        comparison = {"comparison": [each.to_dict() for each in report.differences]} if report.against else {}
        print(json.dumps({**report.evaluation.to_dict(), **comparison}))
    else:
        _print(report.evaluation)
        for each in report.differences:
            print(f"{each.name}: {each.sentence()}")
    for path in args.report:
        _write(report, path)
    return 0


def _evaluations(args: argparse.Namespace, thresholds: "Sequence[float]") -> "tuple[Evaluation, Evaluation | None]":
    """Returns the evaluation of the model, and that of the other model if one is named."""
    from spanlake.evaluation.results import Evaluation
    from spanlake.evaluation.sets import read_sets, renaming
    from spanlake.evaluation.suites import SUITES, Missing, read_suite

    renamed = dict(map(renaming, args.rename))
    suite = SUITES[args.suite] if args.suite else None
    split = args.split or (suite.split if suite else "test")
    missing: list[Missing] = []
    if suite:
        sets, missing = read_suite(suite, Path(args.data), split, renamed)
    else:
        sets = read_sets(args.data, split, renamed)
    package = None if args.endpoint else args.model or _MODEL
    made = [
        Evaluation(*_scored(args, model, sets, thresholds), split, suite, missing)
        for model in filter(None, (package, args.against))
    ]
    if args.endpoint:
        facts, outcomes, answers = _asked(args, sets)
        made.insert(0, Evaluation(facts, outcomes, outcomes, [None], split, suite, missing, answers))
    return made[0], made[1] if len(made) > 1 else None


def _asked(args: argparse.Namespace, sets: "Sequence[BenchmarkSet]") -> "tuple[ModelFacts, list[Outcome], Answers]":
    """Returns what the language model at the endpoint finds."""
    from spanlake.evaluation.baseline import ask_sets

    return ask_sets(read_endpoint(args), args.style or "tuples", read_price(args), sets, nested=args.nested)


def _check_endpoint(args: argparse.Namespace) -> None:
    """Refuses options that would have no effect."""
    if args.endpoint:
        read_endpoint(args)
        read_price(args)
        if args.workers:
            raise UserError("--workers is for packages; --concurrency is the number of questions to the endpoint.")
        if args.threshold is not None and not args.against:
            raise UserError("--threshold has no effect: a language model gives no scores; leave it out.")
        return
    for name in ("style", "price", "key_variable", "concurrency", "timeout"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for language models; give --endpoint URL too.")


def _scored(
    args: argparse.Namespace, model: str, sets: "Sequence[BenchmarkSet]", thresholds: "Sequence[float]"
) -> "tuple[ModelFacts, list[Outcome], list[Outcome], Sequence[float | None]]":
    """Returns facts about the model, what it finds, the same from a low threshold up, and the scored thresholds."""
    from spanlake.calibration import DEFAULT_THRESHOLD

    low = [_CURVES_FROM] if args.report else []
    if thresholds:
        facts, outcomes = _outcomes(args, model, sets, min([*thresholds, *low]))
        return facts, outcomes, outcomes, thresholds
    facts, outcomes = _outcomes(args, model, sets, low[0] if low else None)
    if not facts.calibrated:
        return facts, outcomes, outcomes, [DEFAULT_THRESHOLD]
    return facts, _outcomes(args, model, sets, None)[1] if low else outcomes, outcomes, [None]


def _write(report: "Report", path: Path) -> None:
    if path.suffix == ".html":
        content = report.to_html()
    elif path.suffix == ".md":
        content = report.to_markdown()
    else:
        content = json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n"
    path.write_text(content, encoding="utf-8", errors="replace")


def _outcomes(
    args: argparse.Namespace, model: str, sets: "Sequence[BenchmarkSet]", threshold: float | None
) -> "tuple[ModelFacts, list[Outcome]]":
    from spanlake.evaluation.pool import ModelChoice, evaluate_model

    choice = ModelChoice(model, args.device, args.precision)
    return evaluate_model(choice, sets, threshold=threshold, nested=args.nested, workers=args.workers)


def parse_thresholds(text: str) -> list[float]:
    """Reads `0.5`, `0.3,0.5` or `0.1:0.9:0.1`. Raises `UserError` for anything else, and for values outside 0 to 1."""
    try:
        if ":" in text:
            first, last, step = map(float, text.split(":"))
            if not (step > 0 and 0 <= last - first <= step * _MOST_THRESHOLDS):
                raise ValueError
            values = [round(first + i * step, 10) for i in range(int((last - first) / step + 1e-9) + 1)]
        else:
            values = [float(part) for part in text.split(",")]
        if not all(0 <= value <= 1 for value in values):
            raise ValueError
    except ValueError:
        raise UserError(
            f"The threshold {shown(text)} is unknown; give a number from 0 to 1, several with commas, or FROM:TO:STEP."
        ) from None
    return values


def _print(evaluation: "Evaluation") -> None:
    from spanlake.evaluation.results import averages

    results = evaluation.results()
    for outcome, result in zip(evaluation.outcomes, results, strict=True):
        score = result.overall
        missed = evaluation.model.unfindable(outcome.benchmark)
        wide, inside = missed.get("wider_than_max_width", 0), missed.get("inside_a_word", 0)
        unfindable = f", {wide} of them wider than {evaluation.model.max_width} words" if wide else ""
        unfindable += f", {inside} of them with an edge inside a word" if inside else ""
        print(
            f"{result.name}: F1 {100 * score.f1:.1f}, precision {100 * score.precision:.1f}, "
            f"recall {100 * score.recall:.1f} ({result.texts} texts, {score.gold} mentions{unfindable})"
        )
    for average in averages(evaluation.suite, results) if evaluation.suite else ():
        part = f" (of {average.sets} of {average.of} sets)" if average.sets < average.of else ""
        print(f"{average.name}: F1 {100 * average.f1:.1f}{part}")
    if evaluation.answers:
        print(f"{evaluation.model.name} ({evaluation.model.identity}): {evaluation.answers.sentence()}.")
        for named in evaluation.answers.named:
            print(f"  {named}")
    for missing in evaluation.missing:
        print(f"{missing.name} is not there: {missing.reason}.")
    if len(evaluation.thresholds) > 1:
        _print_sweep(evaluation)


def _print_sweep(evaluation: "Evaluation") -> None:
    print("threshold\tmean F1\t" + "\t".join(outcome.benchmark.name for outcome in evaluation.outcomes))
    for at in evaluation.to_dict()["sweep"]:
        scores = "\t".join(f"{each['f1']:.1f}" for each in at["sets"])
        print(f"{at['threshold']:g}\t{at['mean_f1']:.1f}\t{scores}")
