#!/usr/bin/env bash
# Runs dft on N ranks of this machine (or of the allocation that mpirun finds itself in):
#
#   launch/mpirun.sh N ARGUMENTS-OF-DFT...
#
# The same as `mpirun -n N --bind-to none target/release/dft ...` with the mpirun that dft was built for. Options of
# mpirun go into MPIRUN_OPTIONS.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mpirun_options=${MPIRUN_OPTIONS:-}                      # such as "--hostfile hosts"
dft=${CARGO_TARGET_DIR:-$root/target}/release/dft

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "launch/mpirun.sh: wanted a number of ranks, found '${1:-}'; such as launch/mpirun.sh 2 train CONFIG" >&2
    exit 2
fi
ranks=$1
shift
source "$root/launch/env.sh"
if ! [[ -x $dft ]]; then
    echo "launch/mpirun.sh: wanted $dft, found none; run launch/setup.sh" >&2
    exit 2
fi
# Open MPI binds each of two ranks to one core; dft gives a rank its share of the cores as threads instead.
# shellcheck disable=SC2086 # options are words
exec "$(dirname "$MPICC")/mpirun" -n "$ranks" --bind-to none $mpirun_options "$dft" "$@"
