"""What `ray job submit -- python jobs/train.py RECIPE` runs: `spanlake train`."""

import sys

from spanlake.cli import main

raise SystemExit(main(["train", *sys.argv[1:]]))
