#!/usr/bin/env bash
# Installs the wheel of Spanlake into an image that has its dependencies.
# usage: finish.sh WHEELS      PIP_ARGUMENTS are more arguments for pip.
set -euo pipefail
read -ra more <<<"${PIP_ARGUMENTS:-}"
python3 -m pip install --no-cache-dir --no-deps --no-index "${more[@]}" "$1"/spanlake-*.whl
