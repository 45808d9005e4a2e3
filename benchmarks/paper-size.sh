#!/usr/bin/env bash
# The MNIST experiment at the paper's size: fits the energy of 9 million parameters, trains a one-step sampler of it, and scores that
# beside annealed Langevin of 10 to 200 steps on the same energy. Meant for GPUs; run it again to go on after an interruption.
#
#   launch/setup.sh --cuda && RANKS=8 benchmarks/paper-size.sh
#
# Options of dft make it smaller, or another experiment:
#
#   ENERGY_RUN=runs/energy-16 RUN=runs/sampler-16 FIT="--set energy.width=16 --set train.iterations=4000" \
#       TRAIN="--set method.kind=kl" benchmarks/paper-size.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}        # processes, one for a GPU; a number that divides 24
energy_run=${ENERGY_RUN:-runs/mnist-energy-resnet}  # where the energy goes
run=${RUN:-runs/mnist-resnet}                   # where the sampler goes
fit=${FIT:-}                                    # options of dft fit-energy
train=${TRAIN:-}                                # options of dft train
evaluate=${EVALUATE:-}                          # options of dft evaluate
energy=$energy_run/weights.safetensors

dft() { launch/mpirun.sh "$ranks" "$@"; }
# A run that stopped before its first checkpoint starts again, with --resume as well.
go_on_in() { if [[ -e $1/config.toml ]]; then echo --resume; fi; }

((gpus > 0)) || echo "no NVIDIA GPU was found: at full size this is too much for CPUs; FIT and TRAIN can make it smaller" >&2
launch/mpirun.sh 1 data mnist

# shellcheck disable=SC2046,SC2086 # options are words
if [[ -e $energy ]]; then
    echo "$energy is there already: left as it is (remove it, or set ENERGY_RUN, to fit anew)"
else
    dft fit-energy configs/mnist-energy-resnet.toml --run "$energy_run" $fit $(go_on_in "$energy_run")
fi
# shellcheck disable=SC2046,SC2086
if [[ -e $run/summary.json ]]; then
    grep -qF "\"$energy\"" "$run/config.toml" || {
        echo "benchmarks/paper-size.sh: $run was trained on another energy than $energy; set RUN, or remove it" >&2
        exit 1
    }
    echo "$run is a finished run: evaluating it again (remove it, or set RUN, to train anew)"
else
    dft train configs/mnist-resnet.toml --run "$run" --set target.file="$energy" $train $(go_on_in "$run")
fi
# shellcheck disable=SC2086
dft evaluate "$run" $evaluate
launch/mpirun.sh 1 plot "$run"

printf 'energy %s, sampler %s, after %d s\n' "$energy" "$run/sampler.safetensors" $SECONDS
