#!/usr/bin/env bash
# Installs what Spanlake depends on, at the versions in constraints.txt, without Spanlake itself.
# usage: dependencies.sh cpu|cuda DIRECTORY      DIRECTORY has pyproject.toml and constraints.txt
# PIP_ARGUMENTS are more arguments for pip, such as --dry-run.
set -euo pipefail
build=$1 directory=$2
read -ra more <<<"${PIP_ARGUMENTS:-}"
pip_install() { python3 -m pip install --no-cache-dir --no-compile -c "$directory/constraints.txt" "${more[@]}" "$@"; }

torch=$(sed -n 's/^torch==/torch==/p' "$directory/constraints.txt")
case $build in
    cpu) pip_install "$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu ;;
    cuda) pip_install "$torch" ;;
    *) echo "The build of PyTorch is '$build'; it must be cpu or cuda." >&2; exit 2 ;;
esac

mapfile -t requirements < <(python3 - "$directory/pyproject.toml" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["ray"], *extras["train"], *extras["serve"], *extras["tables"], sep="\n")
PYTHON
)
pip_install "${requirements[@]}"
