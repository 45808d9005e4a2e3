#!/usr/bin/env bash
# Several hosts on one machine: trains over two and three network namespaces, each with its own address and host name,
# by mpirun with a remote shell and TCP, and compares with one rank on one host; then cuts a host off. Nothing of the
# machine's own network is touched. Needs root, and a built target/release/dft.
#
#   sudo ci/hosts.sh
#
# Takes about three minutes on two cores. Exit code 2: something it needs is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

iterations=${ITERATIONS:-600}         # of a run; the cut falls between the first checkpoint and the last iteration
limit=${LIMIT:-180}                   # seconds that a training run may take
dft=${CARGO_TARGET_DIR:-target}/release/dft
hosts=(host-a host-b host-c)          # mpirun runs on the first
settings=("train.iterations=$iterations" "evaluate.every=$iterations" train.warmup_updates=5 checkpoint.every=20
    compute.threads=1 compute.reduction=exact)

need() { # need WANTED FOUND WHAT-TO-DO
    printf 'ci/hosts.sh: wanted %s; found %s\n    %s\n' "$@" >&2
    exit 2
}
(($(id -u) == 0)) || need "root, for network namespaces" "user $(id -un)" "sudo ci/hosts.sh"
for tool in ip unshare mount timeout; do
    command -v $tool >/dev/null || need "$tool" "none on PATH" "Debian, Ubuntu: apt-get install iproute2 util-linux"
done
[[ -x $dft ]] || need "$dft" "none" "launch/setup.sh"
source launch/env.sh
[[ $("$(dirname "$MPICC")/mpirun" --version) == *"Open MPI"* ]] ||
    need "Open MPI's mpirun" "another MPI" "the remote-shell agent and the settings below are Open MPI's"

work=$(mktemp -d)
log=$work/log
name=dft$$    # of the namespaces: dft$$-host-a, ..., and dft$$-switch with the bridge

step() { printf '\n== %s\n' "$*"; }
fail() {
    printf '\nci/hosts.sh: %s\n' "$*" >&2
    if [[ -e $log ]]; then tail -n 40 "$log" >&2; fi
    exit 1
}

clean() {
    local host
    for host in "${hosts[@]}" switch; do
        if ip netns pids "$name-$host" >"$work/pids" 2>/dev/null; then
            xargs -r kill -KILL <"$work/pids" 2>/dev/null || true
            ip netns del "$name-$host" || true
        fi
    done
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

# --- the hosts --------------------------------------------------------------------------------------------------------

link() { ip -n "$name-switch" link set dev "$1" "$2"; } # link HOST up|down: as if its cable were pulled

build_network() {
    local number=0 host
    ip netns add "$name-switch"
    ip -n "$name-switch" link add name switch type bridge
    ip -n "$name-switch" link set dev switch up
    echo "127.0.0.1 localhost" >"$work/hosts"
    for host in "${hosts[@]}"; do
        number=$((number + 1))
        ip netns add "$name-$host"
        ip -n "$name-switch" link add name "$host" type veth peer name eth0 netns "$name-$host"
        ip -n "$name-switch" link set dev "$host" master switch up
        ip -n "$name-$host" link set dev lo up
        ip -n "$name-$host" address add "10.77.0.$number/24" dev eth0
        ip -n "$name-$host" link set dev eth0 up
        echo "10.77.0.$number $host" >>"$work/hosts"
    done
    # What ssh is to real hosts: agent HOST COMMAND..., with a bare environment. The mount is seen by COMMAND alone.
    cat >"$work/agent" <<AGENT
#!/bin/sh
host=\$1
shift
exec env -i HOME="\$HOME" PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin $work/enter "\$host" sh -c "\$*"
AGENT
    cat >"$work/enter" <<ENTER
#!/bin/sh
exec ip netns exec "$name-\$1" unshare --uts sh -c 'hostname "\$1" && mount --bind $work/hosts /etc/hosts && shift && exec "\$@"' sh "\$@"
ENTER
    chmod +x "$work/agent" "$work/enter"
}
build_network 2>"$log" || need "network namespaces, veth pairs and a bridge" "$(cat "$log")" \
    "run on the machine itself, or in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN"

# --- jobs -------------------------------------------------------------------------------------------------------------

# on_hosts COUNT ARGUMENTS-OF-DFT...: one rank on each of the first COUNT hosts.
on_hosts() {
    local count=$1
    shift
    printf '%s slots=1\n' "${hosts[@]:0:count}" >"$work/hostfile"
    MPIRUN_OPTIONS="--hostfile $work/hostfile --mca plm_rsh_agent $work/agent --mca pml ob1 --mca btl self,vader,tcp" \
        timeout --foreground --kill-after=5 "$limit" "$work/enter" "${hosts[0]}" launch/mpirun.sh "$count" "$@"
}

# train RUN [OPTIONS]: the arguments of dft, into the array `arguments`.
train() {
    local run=$1 setting
    shift
    arguments=(train configs/quick.toml --run "$work/$run" "$@")
    for setting in "${settings[@]}"; do arguments+=(--set "$setting"); done
}

sha256_of() { sed -n 's/.*"parameters_sha256": "\(.*\)".*/\1/p' "$work/$1/summary.json"; }

# equal RUN RUN: the same parameters in every bit.
equal() {
    local first second
    first=$(sha256_of "$1") second=$(sha256_of "$2")
    printf '%-28s %s\n' "$1" "$first" "$2" "$second"
    [[ -n $first && $first == "$second" ]] || fail "wanted equal parameters_sha256; found the two above"
}

# until_true SECONDS WHAT COMMAND...
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || fail "wanted $what; found none in time"
        sleep 0.1
    done
}
ended() { ! kill -0 "$1" 2>/dev/null; }
# has_checkpoint RUN JOB
has_checkpoint() {
    if ended "$2"; then fail "$1 ended before its first checkpoint"; fi
    compgen -G "$work/$1/checkpoints/*.safetensors" >/dev/null
}
# idle: nothing of the job is left on any host, the unreachable one included.
idle() {
    local host
    for host in "${hosts[@]}"; do [[ -z $(ip netns pids "$name-$host") ]] || return 1; done
}

# cut_off RUN SECONDS: starts `arguments` on two hosts, pulls the second's cable after a checkpoint, and wants the job to
# end by itself within SECONDS, with a failure.
cut_off() {
    local run=$1 within=$2 job code=0 cut
    on_hosts 2 "${arguments[@]}" >"$log" 2>&1 &
    job=$!
    until_true "$limit" "a checkpoint of $run" has_checkpoint "$run" $job
    link "${hosts[1]}" down
    cut=$SECONDS
    until_true "$within" "an end of mpirun within $within s after the cut" ended $job
    wait "$job" || code=$?
    printf 'mpirun ended with exit code %d, %d s after the cut\n' $code $((SECONDS - cut))
    ((code != 0 && code != 124)) || fail "wanted a failure; found exit code $code"
    [[ ! -e $work/$run/summary.json ]] || fail "the run finished before the cut; set ITERATIONS higher"
    until_true "$within" "no process left on any host, the unreachable one included" idle
    printf 'nothing was left on any host %d s after the cut\n' $((SECONDS - cut))
    link "${hosts[1]}" up
}

# said TEXT: in the log of the last cut.
said() { grep -m 1 -- "$1" "$log" || fail "wanted a message with '$1'; found none"; }

# --- the checks -------------------------------------------------------------------------------------------------------

step "three hosts: each rank on a host of its own, an all-reduce between them"
on_hosts 3 doctor 2>&1 | tee "$log"
for host in "${hosts[@]}"; do said " $host " >/dev/null; done

step "$iterations iterations: one rank on one host, two and three on as many hosts over TCP"
train one-rank
launch/mpirun.sh 1 "${arguments[@]}" >"$log" 2>&1 || fail "the run on one host failed"
for count in 2 3; do
    train "$count-hosts"
    on_hosts $count "${arguments[@]}" >"$log" 2>&1 || fail "the run on $count hosts failed"
    equal one-rank "$count-hosts"
done

step "a host is cut off, and mpirun notices; resumed on three: the bits of an uninterrupted run"
export OMPI_MCA_oob_tcp_keepalive_time=2 OMPI_MCA_oob_tcp_keepalive_intvl=1 OMPI_MCA_oob_tcp_keepalive_probes=3
train cut-off
cut_off cut-off 30
said "lost communication with a remote daemon"
train cut-off --resume
on_hosts 3 "${arguments[@]}" >"$log" 2>&1 || fail "resuming failed"
equal one-rank cut-off

# The other order: a rank notices before mpirun does. mpirun then waits until TCP gives up on the message that tells the
# lost host to stop: a quarter of an hour with the kernel's default of tcp_retries2 = 15, so it is lower here.
step "a host is cut off, and the ranks notice: compute.stall_seconds"
unset OMPI_MCA_oob_tcp_keepalive_time OMPI_MCA_oob_tcp_keepalive_intvl OMPI_MCA_oob_tcp_keepalive_probes
for host in "${hosts[@]}"; do
    ip netns exec "$name-$host" sh -c 'echo 5 >/proc/sys/net/ipv4/tcp_retries2'
done
settings+=(compute.stall_seconds=5)
train stalled
cut_off stalled 90
said "rank 1 on ${hosts[1]} .*collective"

step "all passed in $SECONDS s"
