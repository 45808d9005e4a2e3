# shellcheck shell=bash
# Source me, from bash or zsh and any directory: what cargo needs to build dft, and mpirun to start it.
# The built binary itself needs none of this; build.rs gave it its run paths.

if [ -n "${ZSH_VERSION:-}" ]; then
    eval '_dft_file=${(%):-%x}' # zsh's word for BASH_SOURCE, which other shells cannot parse
else
    _dft_file=${BASH_SOURCE[0]}
fi
_dft_venv=$(CDPATH='' cd "$(dirname "$_dft_file")/.." && pwd)/.venv

if ! _dft_site=$("$_dft_venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))' 2>/dev/null); then
    echo "launch/env.sh: wanted $_dft_venv, found none; run launch/setup.sh first" >&2
    unset _dft_file _dft_venv _dft_site
    return 1
fi

case "$PATH" in
    "$_dft_venv/bin:"*) ;;
    *) export PATH="$_dft_venv/bin:$PATH" ;;
esac
export LIBTORCH="$_dft_site/torch"
export LIBCLANG_PATH="$_dft_site/clang/native"
# That libclang comes without the compiler's own headers (stddef.h).
BINDGEN_EXTRA_CLANG_ARGS="-I$(cc -print-file-name=include)"
export BINDGEN_EXTRA_CLANG_ARGS

# MPI: this project's copy if setup.sh installed one, else the system's.
if [ -x "$_dft_venv/bin/mpicc" ]; then
    export MPICC="$_dft_venv/bin/mpicc"
    # It was built for another place, and a process started without mpirun has no other way to learn this one.
    export OPAL_PREFIX="$_dft_venv"
else
    MPICC=$(command -v mpicc)
    export MPICC
    if [ "${OPAL_PREFIX:-}" = "$_dft_venv" ]; then unset OPAL_PREFIX; fi
fi
# More ranks than cores, as tests have; the second is for Open MPI 5. Other MPIs ignore all of these.
export OMPI_MCA_rmaps_base_oversubscribe=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# A host that is cut off: mpirun notices after 20 + 3 * 5 s, instead of 300 + 9 * 20, and ends the job. Keep this below
# compute.stall_seconds: once a rank has aborted the job, mpirun waits for the host that it cannot reach.
export OMPI_MCA_oob_tcp_keepalive_time="${OMPI_MCA_oob_tcp_keepalive_time:-20}"
export OMPI_MCA_oob_tcp_keepalive_intvl="${OMPI_MCA_oob_tcp_keepalive_intvl:-5}"
export OMPI_MCA_oob_tcp_keepalive_probes="${OMPI_MCA_oob_tcp_keepalive_probes:-3}"
# The allocator keeps what an iteration frees: the next one asks for the same, and fresh pages cost more than the memory is worth.
export MIMALLOC_PURGE_DELAY="${MIMALLOC_PURGE_DELAY:--1}"
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

unset _dft_file _dft_venv _dft_site
