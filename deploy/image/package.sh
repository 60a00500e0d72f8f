#!/usr/bin/env bash
# Builds the wheel of Spanlake. Its dependencies are not needed for that.
# usage: package.sh DIRECTORY WHEELS      DIRECTORY has pyproject.toml, LICENSE and platform/
# PIP_ARGUMENTS are more arguments for pip.
set -euo pipefail
read -ra more <<<"${PIP_ARGUMENTS:-}"
python3 -m pip wheel --no-cache-dir --no-deps "${more[@]}" --wheel-dir "$2" "$1"
