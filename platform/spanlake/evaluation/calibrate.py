"""`spanlake calibrate`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanlake.options import add_model_options

if TYPE_CHECKING:
    from spanlake.calibration import Calibration
    from spanlake.evaluation.fitting import Gain

# Everything else is imported where it is used: `spanlake --help` does not wait for torch.

_LABELS_SHOWN = 30


def add_calibrate(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `calibrate`. It sets `run`, a function from the parsed arguments to an exit code."""
    parser = subparsers.add_parser("calibrate", help="fit thresholds and scores to annotated texts")
    parser.description = (
        "Fits thresholds and scores to annotated texts, and writes a copy of the model. The copy uses them if no "
        "threshold is given. Use other texts than those that the model is scored on."
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="a set, a directory of sets, a file, or a Hub id")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="dev", help="(default: dev)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the package goes")
    parser.add_argument("--name", help="the package's name (that of the model)")
    parser.add_argument("--nested", action="store_true", help="for sets with entities within entities")
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="ask for a type by this name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model_options(parser)
    parser.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from spanlake.evaluation.fitting import FOUND_ABOVE, Scored, fit, gain
    from spanlake.evaluation.scores import evaluate
    from spanlake.evaluation.sets import read_sets, renaming
    from spanlake.inference.extractor import Extractor
    from spanlake.inference.hardware import choose_device, choose_precision
    from spanlake.package import open_package, refuse_existing, repack

    refuse_existing(args.output)
    sets = read_sets(args.data, args.split, dict(map(renaming, args.rename)))
    opened = open_package(args.model)
    package = replace(opened, metadata={key: value for key, value in opened.metadata.items() if key != "calibration"})
    device = choose_device(args.device)
    with Extractor(package, device, choose_precision(args.precision, device)) as extractor:
        scored = Scored.of(list(evaluate(extractor, sets, threshold=FOUND_ABOVE, nested=args.nested)))
    calibration, gained = fit(scored), gain(scored)
    document = _document(calibration, gained) | {
        "data": [each.name for each in sets],
        "split": args.split,
        "texts": sum(len(each.examples) for each in sets),
        "mentions": sum(scored.mentions.values()),
    }
    name, int8 = args.name or package.name, package.metadata.get("weights") == "int8"
    package.model.float().cpu()
    fingerprint = repack(package, args.output, name=name, int8=int8, calibration=document)
    if args.json:
        print(json.dumps({"name": name, "fingerprint": fingerprint, "calibration": document}))
        return 0
    _print(calibration, gained)
    print(f"{args.output} holds the package {name}; its fingerprint is {fingerprint}.")
    return 0


def _document(calibration: "Calibration", gained: "Gain") -> dict[str, Any]:
    from spanlake.evaluation.fitting import micro
    from spanlake.evaluation.scores import percent

    return {
        **calibration.to_dict(),
        "held_out": {
            "before": percent(micro(gained.before)),
            "after": percent(micro(gained.after)),
            "calibration_error_before": round(gained.error_before, 4),
            "calibration_error_after": round(gained.error_after, 4),
        },
    }


def _print(calibration: "Calibration", gained: "Gain") -> None:
    from spanlake.evaluation.fitting import micro

    before, after = micro(gained.before), micro(gained.after)
    print(
        f"On texts that the calibration was not fitted to: F1 {100 * before.f1:.1f} at 0.5, {100 * after.f1:.1f} "
        f"calibrated ({100 * (after.f1 - before.f1):+.1f}); scores are off by {100 * gained.error_before:.1f} points, "
        f"{100 * gained.error_after:.1f} calibrated."
    )
    print(f"Threshold {calibration.threshold:.2f} for labels without one of their own.")
    shown = sorted(calibration.thresholds, key=lambda label: -gained.before[label].gold)
    for label in shown[:_LABELS_SHOWN]:
        one, other = gained.before[label], gained.after[label]
        print(f"{label}: threshold {calibration.thresholds[label]:.2f}, F1 {100 * one.f1:.1f} -> {100 * other.f1:.1f}")
    if len(shown) > _LABELS_SHOWN:
        print(f"and {len(shown) - _LABELS_SHOWN} labels more.")
