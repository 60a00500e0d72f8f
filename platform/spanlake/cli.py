"""The command `spanlake`: it parses the arguments, calls the library and prints the result.

Exit codes: 0 for success, 1 where the work could not be finished, 2 where the call was wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spanlake.annotation.command import add_commands as add_annotation_commands
from spanlake.data.command import add_commands as add_data_commands
from spanlake.errors import SpanlakeError, UserError
from spanlake.evaluation.command import add_commands as add_evaluation_commands
from spanlake.extraction.command import add_commands as add_extraction_commands
from spanlake.options import (
    add_labels_option,
    add_model_options,
    add_rules_option,
    add_selection_options,
    add_threshold_option,
)
from spanlake.serving.command import add_commands as add_serving_commands
from spanlake.studies.command import add_commands as add_study_commands
from spanlake.text import printable, replace_surrogates
from spanlake.training.command import add_commands as add_training_commands

# torch takes seconds to import, so each command imports what it needs when it runs: `spanlake --help` answers at once.


if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands. Each sets `run`, a function from the parsed arguments to an exit code."""
    parser = _Parser(prog="spanlake", description="Zero-shot named-entity recognition at data-lake scale.")
    commands: _Commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_predict(commands)
    _add_labels(commands)
    add_extraction_commands(commands)
    add_annotation_commands(commands)
    add_data_commands(commands)
    add_training_commands(commands)
    add_evaluation_commands(commands)
    add_study_commands(commands)
    add_serving_commands(commands)
    _add_package(commands)
    _add_doctor(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args, others = parser.parse_known_args(argv)
    if others and (not hasattr(args, "changes") or any(other.startswith("-") for other in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:  # in `train RECIPE --directory DIR section.key=value`, where argparse takes only RECIPE as positional
        args.changes += others
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that cannot show every character
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except SpanlakeError as error:
        print(f"spanlake: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line; argparse would print the usage before it."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"spanlake: {message}; see `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(2)


# --- predict ---------------------------------------------------------------------------------------------------------


def _add_predict(commands: _Commands) -> None:
    parser = commands.add_parser("predict", help="find entities in texts given here")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text; - reads one text a line from standard input")
    add_labels_option(parser)
    add_model_options(parser)
    add_threshold_option(parser)
    add_selection_options(parser)
    add_rules_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON: one list of entities per text")
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    from spanlake.inference.extractor import Extractor
    from spanlake.inference.settings import read_settings

    settings = read_settings(args.labels, args.threshold, args.nested, args.multi_label, args.rules).joining(
        args.join_adjacent
    )
    texts = _texts(args.texts)
    extractor = Extractor.load(args.model, device=args.device, precision=args.precision)
    found = list(extractor.stream((text, settings) for text in texts))
    if args.json:
        print(json.dumps([[entity.to_dict() for entity in entities] for entities in found]))
        return 0
    for entities in found:
        for entity in entities:
            found_by = entity.source if entity.source == "rule" else f"{entity.score:.2f}"
            print(f"{entity.start}-{entity.end}\t{printable(entity.label)}\t{found_by}\t{printable(entity.text)}")
        print(f"({len(entities)} entities)")
    return 0


def _texts(arguments: list[str]) -> list[str]:
    """Returns the texts; `-` is replaced by the lines of standard input. Each byte that is not UTF-8 becomes U+FFFD."""
    texts: list[str] = []
    for argument in arguments:
        if argument == "-":
            texts += [line.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in sys.stdin.buffer]
        else:
            texts.append(argument)
    return [replace_surrogates(text) for text in texts]


# --- labels ----------------------------------------------------------------------------------------------------------


def _add_labels(commands: _Commands) -> None:
    parser = commands.add_parser("labels", help="encode labels once for a bi-encoder, for all later commands here")
    parser.add_argument("model", help="a bi-encoder: the directory or URI of a package, or a Hub id")
    add_labels_option(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.set_defaults(run=_labels)


def _labels(args: argparse.Namespace) -> int:
    from spanlake.inference.hardware import choose_device
    from spanlake.inference.label_vectors import store_labels
    from spanlake.inference.settings import read_settings

    labels = read_settings(args.labels, [], nested=False, multi_label=False).prompts
    path, new, total = store_labels(args.model, labels, choose_device(args.device))
    print(f"{path} holds the vectors of {total:,} labels, {new:,} of them new.")
    return 0


# --- package ---------------------------------------------------------------------------------------------------------


def _add_package(commands: _Commands) -> None:
    parser = commands.add_parser("package", help="inspect, verify, import and export model packages")
    actions: _Commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser)
    inspect = actions.add_parser("inspect", help="print a description of a package, as JSON")
    inspect.add_argument("model")
    inspect.set_defaults(run=_package_inspect)
    verify = actions.add_parser("verify", help="compare a package with its fingerprint and load it")
    verify.add_argument("model")
    verify.set_defaults(run=_package_verify)
    importing = actions.add_parser("import", help="make a package from a GLiNER checkpoint or another package")
    importing.add_argument("model", help="a directory or Hub id")
    importing.add_argument("directory", type=Path, help="where to write the package")
    importing.add_argument("--name", help="the package's name (default: the model's name)")
    importing.add_argument("--int8", action="store_true", help="store the weights as int8, a quarter of the size")
    importing.set_defaults(run=_package_import)
    export = actions.add_parser("export", help="write a package for the gliner library, ONNX Runtime or OpenVINO")
    export.add_argument("model")
    export.add_argument("directory", type=Path, help="where to write the export")
    export.add_argument(
        "--to", choices=("gliner", "onnx", "openvino"), default="gliner", help="what will read it (default: gliner)"
    )
    export.add_argument("--int8", action="store_true", help="with --to onnx: store the weights as int8")
    export.add_argument(
        "--whitespace-words",
        action="store_true",
        help="with --to gliner: export a model with the splitter unicode too, though gliner cuts words only at "
        "whitespace and signs",
    )
    export.set_defaults(run=_package_export)


def _package_inspect(args: argparse.Namespace) -> int:
    from spanlake.package import describe_model

    print(json.dumps(describe_model(args.model), indent=1))
    return 0


def _package_verify(args: argparse.Namespace) -> int:
    from spanlake.package import open_package

    package = open_package(args.model)
    print(f"{package.name} is whole; its fingerprint is {package.fingerprint}.")
    return 0


def _package_import(args: argparse.Namespace) -> int:
    from spanlake.package import open_package, repack

    package = open_package(args.model)
    fingerprint = repack(package, args.directory, name=args.name or package.name, int8=args.int8)
    print(f"{args.directory} holds the package {args.name or package.name}; its fingerprint is {fingerprint}.")
    return 0


def _package_export(args: argparse.Namespace) -> int:
    from spanlake.export.runtimes import write_runtime
    from spanlake.modeling.gliner_format import write_gliner
    from spanlake.package import open_package, refuse_existing

    if args.to == "gliner" and args.int8:
        raise UserError("--int8 goes with --to onnx, not with --to gliner, which reads float32 weights; leave it out.")
    if args.to != "gliner" and args.whitespace_words:
        raise UserError(f"--whitespace-words goes with --to gliner, not with --to {args.to}; leave it out.")
    refuse_existing(args.directory)
    package = open_package(args.model)
    if args.to == "gliner":
        write_gliner(
            args.directory,
            package.model,
            package.tokenizer.backend,
            labels_tokenizer=package.tokenizer.labels_backend,
            whitespace_words=args.whitespace_words,
        )
        print(f"{args.directory} holds the checkpoint; GLiNER.from_pretrained reads it.")
    else:
        write_runtime(package, args.directory, args.to, int8=args.int8)
        print(f"{args.directory} holds the {args.to} graph; its scores were compared with those of {package.name}.")
    return 0


# --- doctor ----------------------------------------------------------------------------------------------------------


def _add_doctor(commands: _Commands) -> None:
    parser = commands.add_parser("doctor", help="check what this machine and its cluster can do and what is missing")
    parser.add_argument("--model", metavar="MODEL", help="say instead what this model can find and what it cannot")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of checks")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from spanlake.doctor import examine
    from spanlake.reach import examine_model

    checks = []
    for check in examine_model(args.model) if args.model else examine():
        checks.append(check)
        if not args.json:
            print(f"{check.verdict:8}{check.name}: {check.says}", flush=True)
    if args.json:
        print(json.dumps([asdict(check) for check in checks]))
    return 1 if any(check.verdict == "broken" for check in checks) else 0


if __name__ == "__main__":
    raise SystemExit(main())
