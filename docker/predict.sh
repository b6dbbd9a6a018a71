#!/usr/bin/env bash
# FLARE's contract: every CT of WORKSPACE/inputs is segmented into WORKSPACE/outputs, under its own name.
# Further settings of `dlunet predict` can be given, such as flips=axes.
set -euo pipefail
workspace=${WORKSPACE:-/workspace}
exec "${DLUNET:-dlunet}" predict checkpoint="$workspace/model" input="$workspace/inputs" output="$workspace/outputs" "$@"
