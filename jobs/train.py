"""What `ray job submit` runs for training: `python jobs/train.py RECIPE --directory DIR`; torchrun may run it too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # as submitted, if it is not installed

from spanlake import cli  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(cli.main(["train", *sys.argv[1:]]))
