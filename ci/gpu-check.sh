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

# Several ranks on one GPU: each gives NCCL a host name of its own, or NCCL below 2.30 refuses ("Duplicate GPU detected").
# Correct on any machine, meaningless for speed.
# shellcheck disable=SC2016 # expanded by the shell of each rank
as_host='export NCCL_HOSTID=check-${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}; exec "$0" "$@"'
ranks() {   # ranks N ARGUMENTS-OF-DFT...
    local count=$1
    shift
    NCCL_MULTI_RANK_GPU_ENABLE=1 OMPI_MCA_rmaps_base_oversubscribe=1 "$(dirname "$(command -v "$MPICC")")/mpirun" \
        -n "$count" --bind-to none sh -c "$as_host" "$dft" "$@"
}
step "two ranks on CUDA"
ranks 2 doctor --device cuda --share-gpus

step "two ranks over NCCL: collectives, a panic, and losses equal to those of two CPU ranks"
cargo test --release --locked --test comm_cuda -- --ignored --nocapture --test-threads=1 on_cuda

exact=(configs/quick.toml --set compute.device=cuda --set compute.share_gpus=true --set compute.reduction=exact
    --set train.cosine_from=1.0)
sha256_of() { sed -n 's/.*"parameters_sha256": "\([0-9a-f]*\)".*/\1/p' "$runs/$1/summary.json"; }
step "exact sums over NCCL: one hash on 1, 2 and 4 ranks, and from 2 by way of 4 to 1"
for count in 1 2 4; do
    ranks "$count" train "${exact[@]}" --run "$runs/exact-$count" --set train.iterations=300 >"$runs/exact-$count.log"
done
ranks 2 train "${exact[@]}" --run "$runs/exact-elastic" --set train.iterations=100 >"$runs/exact-elastic.log"
ranks 4 train "${exact[@]}" --run "$runs/exact-elastic" --set train.iterations=200 --resume >>"$runs/exact-elastic.log"
ranks 1 train "${exact[@]}" --run "$runs/exact-elastic" --set train.iterations=300 --resume >>"$runs/exact-elastic.log"
for run in exact-1 exact-2 exact-4 exact-elastic; do
    printf '%-14s %s\n' "$run" "$(sha256_of "$run")"
    [[ $(sha256_of "$run") == "$(sha256_of exact-1)" ]] || fail "one hash" "another for $run" "see docs/reproducibility.md"
done

step "the same for convolutions"
convolutions=(configs/mnist.toml --set compute.device=cuda --set compute.share_gpus=true --set compute.reduction=exact
    --set train.iterations=20 --set train.warmup_updates=5 --set warm_start.updates=5 --set evaluate.samples=200)
"$dft" data mnist
for count in 1 2; do
    ranks "$count" train "${convolutions[@]}" --run "$runs/mnist-$count" >"$runs/mnist-$count.log"
    printf 'mnist-%s        %s\n' "$count" "$(sha256_of "mnist-$count")"
done
[[ $(sha256_of mnist-1) == "$(sha256_of mnist-2)" ]] || echo "they differ: cuDNN's kernels, see docs/reproducibility.md"

step "a killed rank ends the job over NCCL"
ranks 2 train "${exact[@]}" --run "$runs/killed" --set train.iterations=100000 >"$runs/killed.log" 2>&1 &
job=$!
until compgen -G "$runs/killed/checkpoints/*.safetensors" >/dev/null; do
    kill -0 "$job" 2>/dev/null || fail "a job that trains" "its end: $(tail -n 3 "$runs/killed.log")" "see $runs/killed.log"
    sleep 0.2
done
pkill -KILL -n -f -- "--run $runs/killed" || fail "a rank to kill" "none" "see $runs/killed.log"
killed_at=$SECONDS
wait "$job" && fail "a failure after SIGKILL of a rank" "exit code 0" "see $runs/killed.log"
((SECONDS - killed_at < 60)) || fail "the end within 60 s" "$((SECONDS - killed_at)) s" "see $runs/killed.log"
printf 'ended after %d s\n' $((SECONDS - killed_at))

step "CUDA graphs: the same hash as call by call"
graphs=("${exact[@]}" --set train.iterations=300)
ranks 1 train "${graphs[@]}" --run "$runs/graphs" --set compute.cuda_graphs=true >"$runs/graphs.log"
[[ $(sha256_of graphs) == "$(sha256_of exact-1)" ]] || fail "the hash of exact-1" "$(sha256_of graphs)" "see src/train/recorded.rs"
rate_of() { sed -n 's/.*"iterations_per_second": \([0-9.]*\).*/\1/p' "$runs/$1/summary.json"; }
for setting in false true; do
    "$dft" train configs/planar/mog2.toml --run "$runs/graphs-$setting" --set compute.device=cuda --set train.iterations=4000 \
        --set compute.cuda_graphs=$setting >"$runs/graphs-$setting.log"
    printf 'cuda_graphs = %-5s  %s iterations/s\n' $setting "$(rate_of graphs-$setting)"
done

step "TF32: what it changes, and what it is worth"
# Of two exact runs the first losses are the same but for the order of sums; with TF32 they are off by about one in a thousand.
first_loss() { grep -m1 -oE 'score loss [0-9.-]+' "$runs/$1.log"; }
for run in exact again tf32; do
    "$dft" train configs/mnist.toml --run "$runs/$run" --set compute.device=cuda --set "train.iterations=$iterations" \
        --set "compute.precision=${run/again/exact}" >"$runs/$run.log" 2>&1
    printf '%-6s %s iterations/s, %s, %s\n' "$run" "$(rate_of "$run")" "$(first_loss "$run")" "$(sha256_of "$run")"
done
[[ $(sha256_of exact) != "$(sha256_of tf32)" ]] || fail "another hash with TF32" "the same" "see src/comm/cuda.rs"
[[ $(sha256_of exact) == "$(sha256_of again)" ]] || echo "two exact runs differ as well: compare the losses above"

step "MNIST on one GPU: $iterations iterations"
"$dft" train configs/mnist.toml --run "$runs/mnist" --set compute.device=cuda --set "train.iterations=$iterations"
grep -E '"(device|iterations|seconds|iterations_per_second|target_evaluations)"' "$runs/mnist/summary.json"

step "all passed; the runs are in $runs"
