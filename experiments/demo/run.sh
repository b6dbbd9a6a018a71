#!/usr/bin/env bash
# The whole path on synthetic abdomens: generate, prepare, train with and without unlabelled cases, predict, evaluate,
# report. Started again, it continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${BIN:-.venv/bin}
data=data/phantom
runs=runs/demo
# Dice + CE until the networks begin to teach each other: the noise-robust losses start slowly.
losses=(loss=dice_ce_first loss.epoch=7)

"$bin/dlunet" prepare data=phantom scale=demo
for experiment in sup_light ssl_light; do
    run=$runs/$experiment
    "$bin/python" train.py experiment=$experiment scale=demo "${losses[@]}" resume=auto output=$run
    "$bin/python" predict.py checkpoint=$run/checkpoints/best.ckpt input=$data/Testing/images output=$run/predictions
    "$bin/dlunet" evaluate predictions=$run/predictions references=$data/Testing/labels output=$run/scores
done
"$bin/dlunet" report runs=$runs output=$runs/report
