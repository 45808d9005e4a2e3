#!/usr/bin/env bash
# Checks of the CUDA and NCCL path, for any machine with an NVIDIA GPU; ci/test.sh runs without one and covers the rest.
#
#   launch/setup.sh --cuda && ci/gpu-check.sh
#
# NOT YET RUN ON A GPU: written beside the code on machines that have none. The first run of it is the test of both.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${RUNS:-$(mktemp -d)}                # where the runs below go
iterations=${ITERATIONS:-200}             # of the MNIST run that is timed
dft=${CARGO_TARGET_DIR:-target}/release/dft

source launch/env.sh
step() { printf '\n== %s\n' "$*"; }
fail() { printf 'ci/gpu-check.sh: wanted %s; found %s; %s\n' "$@" >&2; exit 1; }

command -v nvidia-smi >/dev/null || fail "an NVIDIA GPU" "no nvidia-smi" "run this on a GPU machine"
nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv

step "build"
cargo build --release --locked --bin dft

step "one rank on CUDA: the table names the GPU"
"$dft" doctor --device cuda | tee "$runs/doctor.txt"
grep -q 'cuda:0' "$runs/doctor.txt" || fail "a rank on cuda:0" "the table above" "see its device column"

# Two ranks on one GPU: each gives NCCL a host name of its own, or NCCL below 2.30 refuses ("Duplicate GPU detected").
# Correct on any machine, meaningless for speed.
step "two ranks on CUDA"
# shellcheck disable=SC2016 # expanded by the shell of each rank
as_host='export NCCL_HOSTID=check-${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}; exec "$0" "$@"'
NCCL_MULTI_RANK_GPU_ENABLE=1 "$(dirname "$(command -v "$MPICC")")/mpirun" -n 2 sh -c "$as_host" \
    "$dft" doctor --device cuda --share-gpus

step "two ranks over NCCL: collectives, a panic, and losses equal to those of two CPU ranks"
cargo test --release --locked --test comm_cuda -- --ignored --nocapture --test-threads=1 on_cuda

step "MNIST on one GPU: $iterations iterations"
"$dft" data mnist
"$dft" train configs/mnist.toml --run "$runs/mnist" --set compute.device=cuda --set "train.iterations=$iterations"
grep -E '"(device|iterations|seconds|iterations_per_second|target_evaluations)"' "$runs/mnist/summary.json"

step "all passed; the runs are in $runs"
