"""Runs one of the paper's studies, also as a Ray job: `python jobs/study.py NAME`; see docs/studies.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # for a submitted copy of the package

from spanlake import cli  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(cli.main(["study", *sys.argv[1:]]))
