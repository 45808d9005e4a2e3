#!/usr/bin/env bash
# A real Slurm of one node on this machine: submits launch/slurm.sbatch, signals it as a preemption would, lets its
# time limit run out, and wants it requeued to completion with the bits of an uninterrupted run. Needs root (Slurm's
# daemons do), Debian's or Ubuntu's slurm-wlm, installed if absent, and a built target/release/dft. Daemons, keys, logs
# and ports are its own: a Slurm that the machine runs already is left alone.
#
#   sudo ci/slurm.sh
#
# Takes about five minutes on two cores. Exit code 2: something it needs is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${RUN_SECONDS:-50}            # a whole run should take about this; the time limit below signals after some 30
limit=${LIMIT:-600}                   # seconds that a job may take with all its requeues
dft=${CARGO_TARGET_DIR:-target}/release/dft

need() { # need WANTED FOUND WHAT-TO-DO
    printf 'ci/slurm.sh: wanted %s; found %s\n    %s\n' "$@" >&2
    exit 2
}
(($(id -u) == 0)) || need "root, for slurmd" "user $(id -un)" "sudo ci/slurm.sh"
(($(nproc) >= 2)) || need "two cores, for two ranks" "one" "run this on a larger machine"
[[ -x $dft ]] || need "$dft" "none" "launch/setup.sh"
packages=()
command -v munged >/dev/null || packages+=(munge)
for tool in slurmctld slurmd sbatch; do
    command -v $tool >/dev/null || { packages+=(slurm-wlm); break; }
done
if ((${#packages[@]} > 0)); then
    command -v apt-get >/dev/null || need "Slurm and munge" "none, and no apt-get" "install them with the system's tools"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >&2 ||
        need "${packages[*]}" "none" "apt-get install ${packages[*]}: see its messages above"
fi
source launch/env.sh
while read -r variable; do unset "$variable"; done < <(compgen -e | grep -E '^(SLURM|SBATCH|SQUEUE|SCANCEL)_')

work=$(mktemp -d)
chmod 755 "$work"    # munged looks at the folders above its socket
daemons=()
log=$work/log        # of the latest job

step() { printf '\n== %s\n' "$*"; }
fail() {
    local file
    printf '\nci/slurm.sh: %s\n' "$*" >&2
    for file in "$log" "$work/slurmctld.log" "$work/slurmd.log" "$work/munged.log"; do
        if [[ -e $file ]]; then printf -- '--- the end of %s\n' "${file##*/}" >&2; tail -n 40 "$file" >&2; fi
    done
    exit 1
}

clean() {
    local pid deadline=$((SECONDS + 30))
    if ((${#daemons[@]} == 3)); then
        scancel --full --user=root 2>/dev/null || true
        scancel --user=root 2>/dev/null || true
        until [[ -z $(squeue --noheader 2>/dev/null) ]] || ((SECONDS > deadline)); do sleep 0.5; done
    fi
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${daemons[@]}"; do
        until ! kill -0 "$pid" 2>/dev/null || ((SECONDS > deadline)); do sleep 0.2; done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

# until_true SECONDS WHAT COMMAND...
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || fail "wanted $what; found none in time"
        sleep 0.2
    done
}

# --- the cluster ------------------------------------------------------------------------------------------------------

start_cluster() {
    local host node
    local port=$((20000 + $$ % 6000 * 2))
    host=$(hostname -s)
    node=$(slurmd -C | sed -n 's/^NodeName=[^ ]* //p')    # cores and memory as slurmd finds them
    mkdir "$work/state" "$work/spool"
    : >"$work/plugstack.conf"    # none of the machine's plugins
    dd if=/dev/urandom of="$work/munge.key" bs=128 count=1 status=none
    chmod 600 "$work/munge.key"
    # No cgroups, for containers. cred_expire: a requeued job may start after 5 s; two minutes are the default.
    cat >"$work/slurm.conf" <<CONF
ClusterName=dft
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
PlugStackConfig=$work/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
JobRequeue=1
MinJobAge=86400
MessageTimeout=30
KillWait=10
ReturnToService=2
PropagateResourceLimits=NONE
NodeName=$host NodeAddr=127.0.0.1 $node State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$work/slurm.conf
    munged --foreground --force --socket="$work/munge.socket" --key-file="$work/munge.key" --seed-file="$work/munge.seed" \
        --pid-file="$work/munged.pid" --log-file="$work/munged.log" >"$work/munged.log" 2>&1 &
    daemons+=($!)
    until_true 10 "munged's socket" test -S "$work/munge.socket"
    slurmctld -D >/dev/null 2>&1 &
    daemons+=($!)
    slurmd -D >/dev/null 2>&1 &
    daemons+=($!)
    until_true 60 "an idle node" is_idle
}
is_idle() { [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]; }

# --- jobs -------------------------------------------------------------------------------------------------------------

field() { scontrol --oneliner show job "$job" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }
sha256_of() { sed -n 's/.*"parameters_sha256": "\(.*\)".*/\1/p' "$work/$1/summary.json"; }

# submit RUN SBATCH-OPTION...: the run through launch/slurm.sbatch; its number goes to `job`, its output to `log`.
submit() {
    local run=$1
    shift
    log=$work/$run.log
    job=$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --gpus-per-node=0 --output="$log" "$@" \
        launch/slurm.sbatch "${arguments[@]}" --run "$work/$run") || fail "sbatch refused launch/slurm.sbatch"
    started=$SECONDS
    echo "job $job: $run"
}

# completed: whether the job has; any other end is a failure.
completed() {
    local state
    state=$(field JobState)
    case $state in
        COMPLETED) return 0 ;;
        FAILED | TIMEOUT | CANCELLED | NODE_FAIL | OUT_OF_MEMORY | BOOT_FAIL | DEADLINE)
            fail "wanted the job to complete; found $state, exit code $(field ExitCode)" ;;
        *) return 1 ;;    # pending, running, or on the way from one to the other
    esac
}

# finish RUN: waits for the job and shows how it went.
finish() {
    until_true "$limit" "the job to complete within $limit s" completed
    grep -E 'stopped|resumed at|iterations in' "$log" || true
    printf 'completed after %d s, %s restarts\n' $((SECONDS - started)) "$(field Restarts)"
    printf 'parameters_sha256 %s\n' "$(sha256_of "$1")"
}

# as_whole RUN: with a restart at least, exit code 75 at each, and the bits of the uninterrupted run.
as_whole() {
    local restarts stopped
    restarts=$(field Restarts)
    ((restarts >= 1)) || fail "wanted a requeue; found none; set RUN_SECONDS higher if the run ended before its signal"
    stopped=$(grep -c 'stopped with exit code 75; requeued' "$log" || true)
    ((stopped == restarts)) || fail "wanted exit code 75 at each of $restarts requeues; found it at $stopped"
    [[ $(sha256_of "$1") == "$(sha256_of whole)" ]] || fail "wanted the parameters_sha256 of the uninterrupted run"
}

has_checkpoint() { compgen -G "$work/$1/checkpoints/*.safetensors" >/dev/null; }

# --- the checks -------------------------------------------------------------------------------------------------------

step "Slurm: $(slurmd -V), one node"
start_cluster
sinfo --Node --long

arguments=(train configs/quick.toml --set train.iterations=300 --set evaluate.every=300 --set compute.reduction=exact --set compute.shards=8)
launch/mpirun.sh 2 "${arguments[@]}" --run "$work/speed" >"$log" 2>&1 || fail "the run without Slurm failed"
speed=$(sed -n 's/.*"iterations_per_second": \([0-9]*\).*/\1/p' "$work/speed/summary.json")
iterations=$((speed * seconds + 200))
arguments=(train configs/quick.toml --set "train.iterations=$iterations" --set "evaluate.every=$iterations"
    --set checkpoint.every=100 --set compute.reduction=exact --set compute.shards=8)

step "$iterations iterations on 2 ranks without Slurm, and to completion with it: equal bits"
launch/mpirun.sh 2 "${arguments[@]}" --run "$work/whole" >"$log" 2>&1 || fail "the run without Slurm failed"
printf 'without Slurm     %s\n' "$(sha256_of whole)"
submit slurm --time=60
finish slurm
[[ $(field Restarts) == 0 && $(sha256_of slurm) == "$(sha256_of whole)" ]] || fail "wanted equal bits and no requeue"

step "preempted once by a signal to the script: checkpoint, exit code 75, requeue, completion"
submit preempted --time=60
until_true "$limit" "a checkpoint" has_checkpoint preempted
scancel --signal=USR1 --batch "$job"
finish preempted
as_whole preempted

step "a time limit of two minutes, the signal 90 s before it: requeued until it is done"
submit limited --time=2 --signal=B:USR1@90
finish limited
as_whole limited

step "all passed in $SECONDS s"
