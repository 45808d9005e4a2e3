#!/usr/bin/env bash
# From a fresh clone to a picture of samples: sets up, trains a one-step sampler of MNIST digits on RANKS processes,
# and prints its scores beside annealed Langevin with 10, 50 and 200 steps. Run it again to go on after an
# interruption, or to evaluate once more.
#
#   launch/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
ranks=${RANKS:-$((gpus == 1 ? 1 : 2))}    # processes; with GPUs, one each
run=${RUN:-runs/mnist-quickstart}      # where everything goes
config=${CONFIG:-configs/mnist.toml}

launch/setup.sh
dft() { launch/mpirun.sh "$ranks" "$@"; }

launch/mpirun.sh 1 data mnist
if [[ -e $run/summary.json ]]; then
    echo "$run is a finished run: evaluating it again (remove it, or set RUN, to train anew)"
elif [[ -n $(find "$run/checkpoints" -name '*.safetensors' -print -quit 2>/dev/null) ]]; then
    echo "$run was interrupted: going on from its last checkpoint"
    dft train "$config" --run "$run" --resume
else
    if [[ -e $run ]]; then
        aside=$run.stopped-$(date +%Y%m%d-%H%M%S)
        echo "$run stopped before its first checkpoint: moving it to $aside"
        mv "$run" "$aside"
    fi
    dft train "$config" --run "$run"
fi
dft evaluate "$run"
launch/mpirun.sh 1 plot "$run"

printf '%s/figures/samples.png after %d s\n' "$run" $SECONDS
