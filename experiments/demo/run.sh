#!/usr/bin/env bash
# The whole path on synthetic abdomens: generate, prepare, train with and without unlabelled cases, predict, evaluate,
# report. Started again, it continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${BIN:-.venv/bin}
data=data/phantom
runs=runs/demo

train() {
    # Dice + CE until the networks begin to teach each other: the noise-robust losses start slowly.
    "$bin/python" train.py experiment="$1" scale=demo loss=dice_ce_first resume=auto output=$runs/"$1"
}

"$bin/dlunet" prepare data=phantom scale=demo
mkdir -p $runs
echo "training sup_light on one core (log: $runs/sup_light.log) and ssl_light on another"
train sup_light >$runs/sup_light.log 2>&1 &
supervised=$!
trap 'kill $supervised 2>/dev/null || true' EXIT
train ssl_light
wait $supervised || { tail $runs/sup_light.log >&2; exit 1; }
for experiment in sup_light ssl_light; do
    run=$runs/$experiment
    "$bin/python" predict.py checkpoint=$run/checkpoints/best.ckpt input=$data/Testing/images output=$run/predictions
    "$bin/dlunet" evaluate predictions=$run/predictions references=$data/Testing/labels output=$run/scores
done
"$bin/dlunet" report runs=$runs output=$runs/report
