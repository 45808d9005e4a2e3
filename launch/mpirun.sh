#!/usr/bin/env bash
# Runs dft on N ranks of this machine, of the hosts that MPIRUN_OPTIONS names, or of the Slurm allocation around it:
#
#   launch/mpirun.sh N ARGUMENTS-OF-DFT...
#   MPIRUN_OPTIONS="--hostfile hosts" launch/mpirun.sh N ARGUMENTS-OF-DFT...
#
# The same as `mpirun -n N --bind-to none target/release/dft ...` with the mpirun that dft was built for. Every host
# needs this folder under the same path. docs/clusters.md says more.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mpirun_options=${MPIRUN_OPTIONS:-}                      # options of mpirun, such as "--hostfile hosts"
dft=${CARGO_TARGET_DIR:-$root/target}/release/dft

# What a site with several networks may need, here or in the environment; an interface or a range such as 10.1.0.0/16.
# export OMPI_MCA_oob_tcp_if_include=10.1.0.0/16    # Open MPI's daemons, and
# export OMPI_MCA_btl_tcp_if_include=10.1.0.0/16    # its messages over TCP
# export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp    # TCP and shared memory alone, where UCX or libfabric fails
# export UCX_NET_DEVICES=mlx5_0:1                   # the InfiniBand port
# export NCCL_SOCKET_IFNAME=ib0                     # NCCL's start-up and its TCP
# export NCCL_IB_HCA=mlx5                           # InfiniBand cards for NCCL; NCCL_IB_DISABLE=1: none
# export NCCL_DEBUG=INFO                            # which way NCCL took

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
mpirun=$(dirname "$MPICC")/mpirun

# A remote shell passes no variables on, and Open MPI only its own.
forward=()
if [[ $("$mpirun" --version 2>/dev/null) == *"Open MPI"* ]]; then
    for name in $(compgen -e | grep -E '^(NVIDIA_TF32_OVERRIDE$|NCCL_|UCX_)'); do forward+=(-x "$name"); done
fi
# Open MPI binds each of two ranks to one core; dft gives a rank its share of the cores as threads instead.
# shellcheck disable=SC2086 # options are words
exec "$mpirun" -n "$ranks" --bind-to none "${forward[@]}" $mpirun_options "$dft" "$@"
