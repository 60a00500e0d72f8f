#!/bin/sh
# One turn of the circle: a language model annotates plain texts, a model learns from them, its score is measured, it reads
# the lake, and the endpoint changes to it without a failed request.
#
#   CHAT_URL=http://host:8000/v1 CHAT_MODEL=NAME examples/circle.sh TEXTS DEV LABELS WORK
#
# TEXTS   plain texts, as `spanlake extract` reads them, with a column `text`
# DEV     annotated texts that the new model is scored on, as `spanlake data prepare` reads them: a file
# LABELS  what to find in the lake, such as person,organization
# WORK    a directory that every machine of the cluster can read
#
# Each step goes on where it was stopped, so run the same command again. Variables that may be set:
#
# CHAT_ROWS      texts to annotate, from the first on (1000); the key of the endpoint is OPENAI_API_KEY
# CHAT_BUDGET    the tokens that this may cost (2000000)
# RECIPE         what to train (circle.yaml beside this script); TRAIN: changes to it, such as schedule.steps=500
# UNIT_ROWS      rows in a unit of the lake (256)
# RAY_ADDRESS    the cluster that reads the lake (default: this machine)
# SERVE_CONFIG   the settings of the endpoint (serve/config.yaml); its `model` is replaced
# SERVER         the address of the endpoint (http://127.0.0.1:8000)
# RAY_DASHBOARD_ADDRESS   where `serve deploy` finds the cluster of the endpoint (http://127.0.0.1:8265)
set -eu

texts=$1 dev=$(realpath "$2") labels=$3 work=$(realpath -m "$4")
here=$(dirname "$(realpath "$0")")
server=${SERVER:-http://127.0.0.1:8000}
mkdir -p "$work"

spanlake annotate "$texts" "$work/annotated" --endpoint "$CHAT_URL" --model "$CHAT_MODEL" \
  --limit "${CHAT_ROWS:-1000}" --budget "${CHAT_BUDGET:-2000000}"
spanlake data prepare "$work/annotated" --output "$work/prepared"

# shellcheck disable=SC2086 # TRAIN holds several words
spanlake train "${RECIPE:-$here/circle.yaml}" --directory "$work/run" data.root="$work" data.dev="[$dev]" ${TRAIN:-}
package=$work/run/package
spanlake evaluate --model "$package" --data "$dev" --against mini --json >"$work/evaluation.json"

spanlake extract "$texts" "$work/lake" --labels "$labels" --model "$package" --unit-rows "${UNIT_ROWS:-256}"
spanlake audit "$work/lake" >"$work/audit.json"

sed "s|^\( *model:\).*|\1 $package|" "${SERVE_CONFIG:-$here/../serve/config.yaml}" >"$work/serve.yaml"
serve deploy "$work/serve.yaml"
fingerprint=$(spanlake package inspect "$package" | sed -n 's/.*"fingerprint": "\([0-9a-f]*\)".*/\1/p')
tries=0
until curl -sf "$server/v1/model" | grep -q "$fingerprint"; do
  tries=$((tries + 1))
  [ "$tries" -lt 300 ] || { echo "circle.sh: $server does not answer with the new package; see serve status." >&2; exit 1; }
  sleep 1
done
echo "$server answers with $package ($fingerprint)"
