#!/usr/bin/env bash
# Every check of the project, cheapest first; ends at the first that fails and names it. Needs what launch/setup.sh
# needs. One cargo profile for all, so the C and C++ of the dependencies is compiled once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TERM_PROGRESS_WHEN=never
export CUDA_VISIBLE_DEVICES=     # jobs of several ranks on any machine; ci/gpu-check.sh has the GPUs
export RUSTDOCFLAGS="-D warnings"

timings=()

# stage NAME COMMAND...
stage() {
    local name=$1 started=$SECONDS code=0
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" || code=$?
    if ((code != 0)); then
        printf '\n== stage "%s" failed after %d s with exit code %d\n' "$name" $((SECONDS - started)) $code >&2
        exit 1
    fi
    timings+=("$(printf '%-8s %4d s' "$name" $((SECONDS - started)))")
    printf '== %s: passed in %d s\n' "$name" $((SECONDS - started))
}

shell_syntax() {
    local script
    for script in launch/*.sh launch/slurm.sbatch ci/*.sh benchmarks/*.sh .ci/run; do
        bash -n "$script" || return 1
    done
    if command -v shellcheck >/dev/null; then
        shellcheck --external-sources launch/*.sh launch/slurm.sbatch ci/*.sh benchmarks/*.sh .ci/run
    else
        echo "shellcheck is not installed: syntax only"
    fi
}

# The library for CUDA is opened on GPUs alone, which this machine may lack; that libtorch has all it asks for can be seen anywhere.
cuda_symbols() {
    local library site has wants
    [[ -e $LIBTORCH/lib/libtorch_cuda.so ]] || { echo "this libtorch has no CUDA: not checked"; return 0; }
    library=$(find "${CARGO_TARGET_DIR:-target}/release/build" -path '*/denoising-fisher-*/out/libdft-cuda.so' -printf '%T@ %p\n' |
        sort -n | tail -1 | cut -d' ' -f2-)
    [[ -n $library ]] || { echo "wanted libdft-cuda.so, found none: see build.rs"; return 1; }
    site=$(dirname "$LIBTORCH")
    symbols() { nm -D "$@" | awk 'NF > 1 { print $NF }' | sed 's/@.*//' | sort -u; }
    has=$(symbols --defined-only "$LIBTORCH"/lib/lib{torch_cuda,torch_cpu,c10_cuda,c10}.so "$site"/nvidia/cu13/lib/libcudart.so.*)
    wants=$(symbols --undefined-only "$library" | grep -E '2at|3c10|^cuda')
    [[ -n $has && -n $wants ]] || { echo "nm lists no symbols"; return 1; }
    ! comm -13 <(echo "$has") <(echo "$wants") | grep . || { echo "libtorch and the CUDA runtime lack these"; return 1; }
    echo "libtorch and the CUDA runtime have all $(wc -l <<<"$wants") symbols of it"
}

# From the energy to the table with the smallest of networks, and once more after a stop before the sampler's first checkpoint.
paper_size() {
    local runs code=0
    runs=$(mktemp -d) || return 1
    small_paper_size "$runs" && rm -r "$runs"/sampler/checkpoints/* "$runs/sampler/summary.json" && small_paper_size "$runs" &&
        [[ -s $runs/sampler/figures/samples.png ]] || code=$?
    rm -rf "$runs"
    return $code
}

small_paper_size() {
    local runs=$1
    RANKS=2 ENERGY_RUN="$runs/energy" RUN="$runs/sampler" \
        FIT="--set energy.width=4 --set train.iterations=4 --set train.batch=24" \
        TRAIN="--set sampler.width=4 --set score.width=4 --set warm_start.updates=2 --set regression.pairs=24
            --set regression.batch=24 --set regression.langevin_steps=1 --set train.iterations=3 --set train.batch=24
            --set train.warmup_updates=1 --set evaluate.samples=120" \
        EVALUATE="--samples 120 --langevin 2" benchmarks/paper-size.sh
}

stage setup launch/setup.sh --tests --no-build
source launch/env.sh
for component in fmt clippy; do
    if ! cargo $component --version >/dev/null 2>&1; then
        echo "ci/test.sh: wanted cargo $component, found none; rustup component add rustfmt clippy" >&2
        exit 1
    fi
done
stage format cargo fmt --check
stage shell shell_syntax
stage lints cargo clippy --release --all-targets --locked -- -D warnings
stage doc cargo doc --release --no-deps --locked
stage build cargo build --release --locked
stage cuda cuda_symbols
stage data target/release/dft data mnist
stage paper paper_size
stage tests cargo test --release --locked

printf '\n== all passed in %d s\n' $SECONDS
printf '   %s\n' "${timings[@]}"
