#!/usr/bin/env bash
# Installs Spanlake with the given extras into a virtual environment, at the versions in constraints.txt.
# usage: tools/install.sh VENV EXTRAS      e.g. tools/install.sh .venv ray,dev
# PYTHON names the interpreter that makes the environment (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=$2
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "Spanlake needs Python 3.10 or newer, and '$python' is older; name another: make PYTHON=python3.12" >&2
    exit 1
fi

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip_install() { "$venv/bin/python" -m pip --disable-pip-version-check install --constraint constraints.txt "$@"; }
pip_install --upgrade pip

torch=$(sed -n 's/^torch==/torch==/p' constraints.txt)
pytorch_index=(--extra-index-url https://download.pytorch.org/whl/cpu --timeout 10 --retries 1)

offers_cpu_build() { pip_install --quiet --dry-run --no-deps "$torch+cpu" "$@" >/dev/null 2>&1; }

# On Linux the plain build downloads gigabytes of CUDA libraries. Without an NVIDIA GPU this script therefore takes the
# CPU build: from pip's configured sources, else from PyTorch's own index. On other systems the plain build is small.
if [ "$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then
    pip_install "$torch"
elif offers_cpu_build; then
    pip_install "$torch+cpu"
elif offers_cpu_build "${pytorch_index[@]}"; then
    pip_install "$torch+cpu" "${pytorch_index[@]}"
else
    echo "warning: found no CPU build of $torch; installing the CUDA build, which downloads gigabytes" >&2
    pip_install "$torch"
fi

pip_install --editable ".[$extras]"
