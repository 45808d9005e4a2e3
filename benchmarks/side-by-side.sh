#!/usr/bin/env bash
# Times dft and its PyTorch twins (benchmarks/pytorch) in turn on this machine, and writes a report:
#
#   PYTHON=/path/to/python benchmarks/side-by-side.sh [REPORT.md]
#
# First the twins have to agree with dft; then every round measures dft and each way to run the twin, one after the other.
# Nothing else should run meanwhile. All of it takes two to three hours on two cores; see SCALE and CASES.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHON=${PYTHON:-python3}        # has torch and numpy, of the libtorch that dft was built with
export DEVICE=${DEVICE:-cpu}            # cpu or cuda
export CASES=${CASES:-planar-512 planar-2048 logistic mnist}
export VARIANTS=${VARIANTS:-}           # of the twin; all that DEVICE has if empty
export PAIRS=${PAIRS:-7}                # rounds; the first is dropped
export SCALE=${SCALE:-1}                # factor on the iterations of a measurement
export RANKS=${RANKS:-2}                # ranks, cores or GPUs of the second setting; 1: leave it out
export CORE=${CORE:-0}                  # where one-core measurements run
export SAMPLES=${SAMPLES:-1000000}      # drawn of vectors
export IMAGES=${IMAGES:-20000}          # drawn of images
report=${1:-benchmarks/$(date +%F)-side-by-side.md}
runs=${RUNS:-$(mktemp -d)}              # agreement files, runs and every measurement
mkdir -p "$runs"

source launch/env.sh
cargo build --release --locked --bin dft --example first_iteration
export DFT=${CARGO_TARGET_DIR:-target}/release/dft

[[ -f data/speed-logistic.csv ]] || "$PYTHON" benchmarks/pytorch/make_rows.py
for case in planar logistic mnist; do
    case " $CASES" in *" $case"*) ;; *) continue ;; esac
    "$(dirname "$DFT")/examples/first_iteration" "configs/speed/$case.toml" "$runs/$case.safetensors"
    "$PYTHON" benchmarks/pytorch/agree.py "$runs/$case.safetensors" | tee "$runs/agreement-$case.txt"
    # In f64: inductor's functions round otherwise, and Adam's first steps make much of a last digit (agree.py says why).
    [[ $VARIANTS == *compile* || -z $VARIANTS ]] || continue
    "$PYTHON" benchmarks/pytorch/agree.py "$runs/$case.safetensors" --variant compile --double |
        tee "$runs/agreement-$case-compiled.txt"
done

exec "$PYTHON" benchmarks/side_by_side.py "$runs" "$report"
