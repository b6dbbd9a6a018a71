#!/usr/bin/env bash
# The complete pipeline on synthetic abdomens: generate, prepare, train with and without unlabelled cases, predict,
# evaluate, report. Rerun it to resume an interrupted run.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${BIN:-.venv/bin}
data=data/phantom
runs=runs/demo

"$bin/dlunet" prepare data=phantom scale=demo
for experiment in sup_light ssl_light; do
    run=$runs/$experiment
    "$bin/python" train.py experiment=$experiment name=$experiment scale=demo resume=auto output=$run
    "$bin/python" predict.py checkpoint=$run/checkpoints/best.ckpt input=$data/Testing/images output=$run/predictions
    "$bin/dlunet" evaluate predictions=$run/predictions references=$data/Testing/labels output=$run/scores
done
"$bin/dlunet" report runs=$runs output=$runs/report
