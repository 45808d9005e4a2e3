#!/usr/bin/env bash
# Prepares .venv (libtorch, MPI, build tools) and builds target/release/dft. Needs no root, writes only inside the
# project (and pip's and cargo's caches); what is already in place is left alone, so a second run takes seconds.
#
#   launch/setup.sh [OPTIONS]
#     --cuda        install CUDA and NCCL although no GPU is found here (a login node, a container build)
#     --cpu         leave them out although a GPU is found
#     --full-torch  install the whole of PyTorch, as the Python twins need; on a CPU host 3.4 GB more
#     --tests       also install what the tests compare with: numpy, scipy, h5py
#     --no-build    stop before cargo build
set -Eeuo pipefail
trap 'printf "\nlaunch/setup.sh: failed at line %d: %s\n" $LINENO "$BASH_COMMAND" >&2' ERR

torch=2.11.0       # the one libtorch that tch 0.24 is made for
openmpi=4.1.8      # only where the system has no mpicc and mpirun
libclang=18.1.1    # for bindgen, which wants a version below 22; a system copy often lacks its headers
cmake=4.4.4        # only where the system has none from 3.26 on, as HDF5 wants
cuda_runtime=13.0.96 cuda_cupti=13.0.85    # what libtorch_cpu.so alone needs of CUDA
cuda_crt=13.0.88   # headers, without which the program is built without CUDA graphs
numpy=2.4.6 scipy=1.17.1 h5py=3.16.0
python=${PYTHON:-python3}    # 3.10 or later with venv; --tests and --full-torch: 3.11 or later

fail() { # fail WANTED FOUND WHAT-TO-DO
    printf '\nlaunch/setup.sh: wanted %s; found %s\n    %s\n' "$@" >&2
    exit 1
}

with_cuda=auto full_torch=false with_tests=false build=true
for option in "$@"; do
    case $option in
        --cuda) with_cuda=true ;;
        --cpu) with_cuda=false ;;
        --full-torch) full_torch=true ;;
        --tests) with_tests=true ;;
        --no-build) build=false ;;
        --help | -h) sed -n '2,/^set -E/{/^set -E/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        *) fail "an option of launch/setup.sh" "$option" "launch/setup.sh --help lists them" ;;
    esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
state=$venv/setup    # one file per finished stage, holding what it installed

# A shell that sourced env.sh has .venv first on PATH; what counts as the system's is what comes after it.
PATH=:$PATH:
PATH=${PATH//:"$venv/bin":/:}
PATH=${PATH#:} PATH=${PATH%:}
if [[ ${OPAL_PREFIX:-} == "$venv" ]]; then unset OPAL_PREFIX; fi
unset PYTHONHOME PYTHONPATH

begin() { printf '%-9s %s ... ' "$1" "$2"; started=$SECONDS; }
end() { printf '%s, %d s\n' "${1:-done}" $((SECONDS - started)); }

# at_least WANTED FOUND: whether a dotted version is recent enough.
at_least() { [[ $(printf '%s\n' "$1" "$2" | sort -V | head -1) == "$1" ]]; }

check_tools() {
    begin tools "Rust, a C and C++ compiler, make, Python"
    local wanted found tool
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null || fail "cargo $wanted or later" "none on PATH" \
        "install Rust with rustup, then open a new shell or add ~/.cargo/bin to PATH"
    found=$(cargo --version | cut -d' ' -f2)
    at_least "$wanted" "$found" || fail "cargo $wanted or later" "$found" "rustup update stable"
    for tool in cc c++ make; do
        command -v $tool >/dev/null || fail "$tool" "none on PATH" \
            "Debian, Ubuntu: apt-get install build-essential; on a cluster load a compiler module"
    done
    command -v "$python" >/dev/null || fail "Python 3.10 or later" "no $python on PATH" \
        "Debian, Ubuntu: apt-get install python3-venv; or name another: PYTHON=python3.12 launch/setup.sh"
    wanted=3.10
    if $with_tests || $full_torch; then wanted=3.11; fi
    found=$("$python" -c 'import platform; print(platform.python_version())')
    at_least $wanted "$found" || fail "Python $wanted or later" "$python is $found" \
        "name another: PYTHON=python3.12 launch/setup.sh"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "Python's venv module" "$python without it" \
        "Debian, Ubuntu: apt-get install python3-venv"
    end ok
}

make_venv() {
    begin venv "Python $("$python" -c 'import platform; print(platform.python_version())') in .venv"
    local identity='import sys; print(sys.version_info[:2])'
    # Scripts in .venv/bin name their interpreter by its full path, so a moved project shows there.
    if [[ $("$venv/bin/python" -c "$identity" 2>/dev/null) == "$("$python" -c "$identity")" ]] &&
        head -2 "$venv/bin/pip" 2>/dev/null | grep -qF "$venv/bin/"; then
        end present
    else
        # Unfinished, moved or of another Python: nothing in it can be relied on.
        rm -rf "$venv"
        "$python" -m venv "$venv" >/dev/null || fail "a virtual environment" "the error above" \
            "Debian, Ubuntu: apt-get install python3-venv"
        end
    fi
    mkdir -p "$state"
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
}

# install NAME WHAT PROOF PIP-ARGUMENT...: once for the same arguments; PROOF is a file the packages bring.
install() {
    local name=$1 what=$2 proof=$3 stamp=$state/$1 repair=()
    shift 3
    begin "$name" "$what"
    if [[ -e $proof && $(cat "$stamp" 2>/dev/null) == "$*" ]]; then
        end present
        return
    fi
    # pip believes an interrupted installation to be whole, so then everything is laid down again.
    if [[ -e $stamp.unfinished || ! -e $proof ]]; then repair=(--ignore-installed); fi
    touch "$stamp.unfinished"
    if ! "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
        "${repair[@]}" "$@" >"$state/pip.log" 2>&1 || [[ ! -e $proof ]]; then
        tail -20 "$state/pip.log" >&2
        fail "pip install $*" "the error above (all of it in .venv/setup/pip.log)" \
            "see to the network or the free disk space, then run launch/setup.sh again: it goes on from here"
    fi
    echo "$*" >"$stamp"
    rm "$stamp.unfinished"
    end
}

install_torch() {
    if [[ $with_cuda == auto ]]; then
        with_cuda=false
        if [[ -e /dev/nvidia0 ]] || nvidia-smi -L >/dev/null 2>&1; then with_cuda=true; fi
    fi
    # Once whole, always whole: a later run on a host without a GPU must not take CUDA away.
    if $with_cuda || $full_torch || [[ $(cat "$state/torch" 2>/dev/null) == "torch==$torch" ]]; then
        install torch "libtorch $torch with CUDA and NCCL (4.7 GB)" "$site/nvidia/nccl/lib/libnccl.so.2" "torch==$torch"
        # NCCL is looked up as libnccl.so; the same file as libtorch_cuda's, so one copy is loaded.
        ln -sfn libnccl.so.2 "$site/nvidia/nccl/lib/libnccl.so"
    else
        install torch "libtorch $torch for CPU (1.3 GB)" "$site/torch/lib/libtorch_cpu.so" --no-deps \
            "torch==$torch" "nvidia-cuda-runtime==$cuda_runtime" "nvidia-cuda-cupti==$cuda_cupti"
    fi
    install cuda-crt "CUDA headers $cuda_crt" "$site/nvidia/cu13/include/crt/host_defines.h" --no-deps "nvidia-cuda-crt==$cuda_crt"
}

install_mpi() {
    local system
    system=$(command -v mpicc || true)
    # The virtual environment of another checkout, left on PATH, is not the system's.
    if [[ -n $system && $system != */.venv/bin/* && ! -e $state/mpi ]] && command -v mpirun >/dev/null; then
        begin mpi "the system's, $system"
        end present
        return
    fi
    install mpi "Open MPI $openmpi (no mpicc on PATH; to use a cluster's, load its module and remove .venv)" \
        "$venv/bin/mpirun" "openmpi==$openmpi"
    # Defaults of this copy alone. ofi: its probe waits one second in every MPI_Init. binding: two ranks would get
    # one core each, whatever their threads. isolated: a process without mpirun needs no daemon beside it.
    local defaults=(
        "btl = ^ofi"
        "hwloc_base_binding_policy = none"
        "rmaps_base_oversubscribe = 1"
        "ess_singleton_isolated = 1"
    )
    # Open MPI will not start even local ranks where it finds no remote shell.
    command -v ssh >/dev/null || command -v rsh >/dev/null || defaults+=("plm_rsh_agent =")
    printf '%s\n' "# Written by launch/setup.sh, which says why." "${defaults[@]}" >"$venv/etc/openmpi-mca-params.conf"
}

install_tools() {
    install libclang "libclang $libclang" "$site/clang/native/libclang.so" "libclang==$libclang"
    local found
    found=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p' || true)
    if [[ -n $found && ! -e $state/cmake ]] && at_least 3.26 "$found"; then
        begin cmake "the system's, $found"
        end present
    else
        install cmake "cmake $cmake" "$venv/bin/cmake" "cmake==$cmake"
    fi
    if $full_torch; then install numpy "numpy $numpy" "$site/numpy" "numpy==$numpy"; fi
    if $with_tests; then
        install tests "numpy $numpy, scipy $scipy, h5py $h5py" "$site/h5py" \
            "numpy==$numpy" "scipy==$scipy" "h5py==$h5py"
    fi
}

# What env.sh exports, for cargo where no shell sourced it: an editor's rust-analyzer, another terminal.
write_cargo_config() {
    local file=.cargo/config.toml mark="# Written by launch/setup.sh; what the shell exports goes first."
    if [[ -e $file ]] && ! head -1 $file | grep -qF "$mark"; then return; fi    # someone's own
    mkdir -p .cargo
    {
        printf '%s\n[env]\n' "$mark"
        for name in LIBTORCH LIBCLANG_PATH BINDGEN_EXTRA_CLANG_ARGS MPICC OPAL_PREFIX; do
            if [[ -n ${!name:-} ]]; then printf '%s = "%s"\n' $name "${!name}"; fi
        done
        printf 'CMAKE = "%s"\n' "$(command -v cmake)"
    } >$file
}

build() {
    # mpi-sys does not notice that mpicc is another one.
    local target=${CARGO_TARGET_DIR:-target}
    if [[ -e $target/mpicc && $(cat "$target/mpicc") != "$MPICC" ]]; then
        cargo clean --release --quiet -p mpi-sys -p mpi
    fi
    mkdir -p "$target"
    echo "$MPICC" >"$target/mpicc"
    begin build "cargo build --release --locked"
    echo
    cargo build --release --locked
    printf '%-9s ' build
    end "$target/release/dft"
}

check_tools
make_venv
install_torch
install_mpi
install_tools
# shellcheck source=launch/env.sh
source launch/env.sh
write_cargo_config
if $build; then build; fi
printf 'ready in %d s; for cargo and mpirun in this shell: source launch/env.sh\n' $SECONDS
