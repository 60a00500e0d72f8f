"""Extracts in bulk as a Ray job. Submit `python jobs/extract.py SOURCE OUTPUT --labels …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # for a submitted copy of the package

from spanlake import cli  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(cli.main(["extract", *sys.argv[1:]]))
