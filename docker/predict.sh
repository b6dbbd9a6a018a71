#!/usr/bin/env bash
# FLARE's container interface: segments every CT in WORKSPACE/inputs; the label map has the same name in
# WORKSPACE/outputs. Accepts further settings of `dlunet predict`, such as flips=axes.
set -euo pipefail
workspace=${WORKSPACE:-/workspace}
exec "${DLUNET:-dlunet}" predict checkpoint="$workspace/model" input="$workspace/inputs" output="$workspace/outputs" "$@"
