"""The options that several commands share."""

import argparse
import math


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds --model, --device and --precision; `Extractor.load` checks their values."""
    parser.add_argument(
        "--model", default="mini", help="mini, the directory or URI of a package, or a Hub id (default: mini)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")


def add_labels_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --labels; `read_settings` reads its value."""
    parser.add_argument(
        "--labels",
        required=required,
        metavar="A,B|@FILE",
        help="the labels to find, with commas between them (double quotes around a label that holds a comma); or a "
        "file: one label a line, or a .json or .yaml list of labels or mapping of labels to descriptions, or to "
        "mappings with a description and a threshold",
    )


def add_threshold_option(parser: argparse.ArgumentParser) -> None:
    """Adds --threshold; `read_settings` reads its values."""
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="T|LABEL=T",
        help="keep entities that score above it, all or those of a label; may be repeated "
        "(default: the model's own, or 0.5)",
    )


def add_selection_options(parser: argparse.ArgumentParser) -> None:
    """Adds --nested and --multi-label."""
    parser.add_argument("--nested", action="store_true", help="allow entities within entities")
    parser.add_argument("--multi-label", action="store_true", help="allow several labels for one span")
    parser.add_argument(
        "--join-adjacent",
        action="store_true",
        help="make one entity of those of one label that follow each other with at most whitespace between them",
    )


def add_rules_option(parser: argparse.ArgumentParser) -> None:
    """Adds --rules; `read_settings` reads its value."""
    parser.add_argument(
        "--rules", metavar="FILE", help="YAML with patterns, lists and kinds that find entities beside the model"
    )


def positive(text: str) -> int:
    """Reads a whole number from 1 up, as the `type` of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def above_zero(text: str) -> float:
    """Reads a number above 0, as the `type` of an option."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
