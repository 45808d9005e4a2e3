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

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}        # processes; with GPUs, one each
energy_run=${ENERGY_RUN:-runs/mnist-energy-resnet}  # where the energy goes
run=${RUN:-runs/mnist-resnet}                   # where the sampler goes
fit=${FIT:-}                                    # options of dft fit-energy
train=${TRAIN:-}                                # options of dft train
evaluate=${EVALUATE:-}                          # options of dft evaluate
energy=$energy_run/weights.safetensors

dft() { launch/mpirun.sh "$ranks" "$@"; }
begun_in() { [[ -n $(find "$1/checkpoints" -name '*.safetensors' -print -quit 2>/dev/null) ]]; }

((gpus > 0)) || echo "no NVIDIA GPU was found: at full size this takes days on CPUs; FIT and TRAIN can make it smaller" >&2
launch/mpirun.sh 1 data mnist

# shellcheck disable=SC2086 # options are words
if ! [[ -e $energy ]]; then
    resume=()
    if begun_in "$energy_run"; then resume=(--resume); fi
    dft fit-energy configs/mnist-energy-resnet.toml --run "$energy_run" $fit "${resume[@]}"
fi
# shellcheck disable=SC2086
if ! [[ -e $run/summary.json ]]; then
    resume=()
    if begun_in "$run"; then resume=(--resume); fi
    dft train configs/mnist-resnet.toml --run "$run" --set target.file="$energy" $train "${resume[@]}"
fi
# shellcheck disable=SC2086
dft evaluate "$run" $evaluate
launch/mpirun.sh 1 plot "$run"

printf 'energy %s, sampler %s, after %d s\n' "$energy" "$run/sampler.safetensors" $SECONDS
