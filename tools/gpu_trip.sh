#!/usr/bin/env bash
# Uses a GPU machine that is at hand for minutes, with torch and transformers and without Ray or a network.
#
#   tools/gpu_trip.sh pack TRIP.tar.gz [DATA ENCODER]   here: the source, the wheels of what the core needs, the tests,
#                                                       the benchmark and its texts; and, for a training of the
#                                                       embedded model, the recipe's data and encoder (directories)
#   tools/gpu_trip.sh run MINUTES [cpu]                 there, in the unpacked directory: the tests of the GPU, the
#                                                       benchmark and the training, one after the other. Each stops at
#                                                       its share of the minutes. What they print is in results/.
#
# `run MINUTES cpu` tries all of it on a machine without a GPU, with tiny shapes.
# PYTHON names the interpreter (default: python3). Both machines need the same version of Python.
set -euo pipefail
python=${PYTHON:-python3}

pack() {
    local target data=${2:-} encoder=${3:-}
    target=$(realpath -m "$1")
    [ -z "$data" ] || [ -n "$encoder" ] || { echo "a training needs DATA and ENCODER" >&2; exit 2; }
    cd "$(dirname "$0")/.."
    trip=$(mktemp -d)  # not local: the trap reads it after the function
    trap 'rm -rf "$trip"' EXIT
    mkdir -p "$trip"/{benchmarks,examples,tests,tools,wheels}
    cp -r platform jobs pyproject.toml "$trip"
    cp benchmarks/{arguments,gpu,machine}.py "$trip/benchmarks"
    cp examples/passages.parquet "$trip/examples"
    cp -r tests/__init__.py tests/conftest.py tests/support tests/gpu "$trip/tests"
    cp tools/gpu_trip.sh "$trip/tools"
    [ -z "$data" ] || { cp -rL "$data" "$trip/data" && cp -rL "$encoder" "$trip/encoder"; }
    find "$trip" -name __pycache__ -prune -exec rm -rf {} +
    # The machine has torch and transformers, with the versions of its own CUDA and driver.
    "$python" - >"$trip/requirements.txt" <<'EOF'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*(each for each in project["dependencies"] if not each.startswith(("torch", "transformers"))), sep="\n")
print("pytest", "pytest-timeout", sep="\n")
EOF
    "$python" -m pip --disable-pip-version-check download --quiet --only-binary :all: --constraint constraints.txt \
        --dest "$trip/wheels" --requirement "$trip/requirements.txt"
    tar -C "$trip" -czf "$target" .
    echo "$target: $(du -h "$target" | cut -f1)"
}

run() {
    local minutes=$1 device=${2:-cuda} began=$SECONDS
    [[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || { echo "MINUTES is '$minutes'; give a whole number from 1 to 9999" >&2; exit 2; }
    [[ $device = cuda || $device = cpu ]] || { echo "the device is '$device'; give cpu, or nothing for the GPU" >&2; exit 2; }
    cd "$(dirname "$0")/.."
    mkdir -p results
    "$python" -m pip --disable-pip-version-check install --quiet --no-index --find-links wheels --no-deps --upgrade \
        --target site wheels/*.whl
    local version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    mkdir -p "site/spanlake-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: spanlake\nVersion: %s\n' "$version" >"site/spanlake-$version.dist-info/METADATA"
    # What the machine has comes first: its torch needs its own versions of some of these libraries.
    export PYTHONPATH=$PWD/platform HF_HUB_OFFLINE=1
    local own
    own=$("$python" -c 'import site; print(":".join(site.getsitepackages()))')
    export PYTHONPATH=$PYTHONPATH:$own:$PWD/site PYTHONUNBUFFERED=1

    step tests $((minutes * 60 / 4)) "$python" -m pytest -p no:cacheprovider -q tests/gpu
    if [ "$device" = cpu ]; then
        step benchmark $((minutes * 60 / 3)) "$python" benchmarks/gpu.py --device cpu --texts 2 --rounds 1 --labels 5
    else
        step benchmark $((minutes * 60 / 3)) "$python" benchmarks/gpu.py --device cuda
    fi
    if [ -d data ]; then
        local left=$((minutes * 60 - (SECONDS - began)))
        [ "$left" -ge 1 ] || left=1  # 0 would be no limit
        step training "$left" "$python" jobs/train.py jobs/recipes/mini.yaml --directory results/run \
            model.encoder=encoder data.root=data ${TRAINING:-}
    else
        echo "training: SKIPPED, because the trip was packed without DATA and ENCODER"
    fi
    [ -z "$failed" ] || { echo "these steps failed:$failed" >&2; exit 1; }
}

failed=
# step NAME SECONDS COMMAND…: its output goes to results/NAME.txt, too. A step that fails does not stop the others.
step() {
    local name=$1 seconds=$2 status=0
    shift 2
    echo "== $name, at most $seconds s"
    timeout --signal INT --kill-after 20 "$seconds" "$@" 2>&1 | tee "results/$name.txt" || status=$?
    echo "== $name ended with status $status" | tee -a "results/$name.txt"
    [ "$status" = 0 ] || failed+=" $name"
}

case "${1:-} $#" in
"pack 2" | "pack 3" | "pack 4") pack "${@:2}" ;;
"run 2" | "run 3") run "${@:2}" ;;
*) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
