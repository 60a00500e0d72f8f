#!/usr/bin/env bash
# Generates the Python code of serving/grpc_api/extraction.proto, in the same folder. Needs grpcio-tools.
set -euo pipefail
cd "$(dirname "$0")/../platform"
folder=spanlake/serving/grpc_api
"${PYTHON:-../.venv/bin/python}" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. "$folder/extraction.proto"
