"""`spanlake study`."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from spanlake.errors import UserError

# Everything else is imported where it is used: `spanlake --help` does not wait for torch.


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `study`. It sets `run`, a function from the parsed arguments to an exit code."""
    parser = subparsers.add_parser("study", help="train and compare the variants of one of the paper's studies")
    parser.description = (
        "Trains and scores each variant, draws the figure, and says what cannot be compared with the paper. The same "
        "command goes on after a failure."
    )
    parser.add_argument("study", metavar="NAME", help="a study of jobs/studies, or a YAML file")
    parser.add_argument("changes", nargs="*", metavar="section.key=value", help="replaces a value of every recipe")
    parser.add_argument("--size", choices=("cpu", "full"), default="cpu", help="(default: cpu, minutes on two cores)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the sets of the study's suite; at CPU size, example passages will do"
    )
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where to write (default: studies/NAME-SIZE)")
    parser.set_defaults(run=_study)


def _study(args: argparse.Namespace) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("A study does not run under torchrun; use parallel.workers=N, which needs Ray.")
    from spanlake.studies.figure import check_matplotlib, draw
    from spanlake.studies.report import Report
    from spanlake.studies.runner import Order, run_study
    from spanlake.studies.study import find_study, read_study

    check_matplotlib()
    path = find_study(args.study)
    study = read_study(path)
    directory = args.directory or Path("studies", f"{path.stem}-{args.size}")
    order = Order(study, path.parent, args.size, directory, args.data, args.changes)
    report = Report(order, *run_study(order))
    draw(study, args.size, report.scored, directory / "figure.png")
    (directory / "results.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    (directory / "results.md").write_text(report.to_markdown(), encoding="utf-8")
    print(report.to_markdown())
    print(directory / "figure.png")
    return 0
