#!/usr/bin/env bash
# Proves that an image works: every library loads, and the model of the repository finds an entity without a network.
set -euo pipefail
export HF_HUB_OFFLINE=1
command -v spanlake-haproxy >/dev/null || { echo "The image lacks spanlake-haproxy, which deploy/kuberay/serve names." >&2; exit 1; }
python3 - <<'PYTHON'
import deepspeed, deltalake, pyiceberg, ray.data, ray.serve, ray.train.v2  # noqa: E401, F401

import spanlake.serving.deployment  # noqa: F401
from spanlake.cli import main

raise SystemExit(main(["doctor"]))
PYTHON
