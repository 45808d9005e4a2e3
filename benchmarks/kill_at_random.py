#!/usr/bin/env python3
"""Kills training runs at random times until they are done, and checks that nothing shows.

    .venv/bin/python benchmarks/kill_at_random.py [--runs 30] [--seed 0] [--set KEY=VALUE ...]

An uninterrupted run comes first: it gives the SHA-256 of the parameters, and the time that the others are killed in. Then
each run is started on a random number of ranks, gets SIGKILL, SIGTERM or SIGUSR1 at a random time, on a random rank or on
mpirun, and is resumed on another random number of ranks, until it is done. Wanted at the end of each: the same SHA-256; a
run.h5 that h5py opens, with every iteration once; exit codes that belong to what was done; and no job that outlives its
time limit. Exit code 1 if anything else happened.

Several numbers of ranks give equal bits with compute.reduction=exact, which is set by default; --reduction=none leaves
the key out, for --ranks with one number.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import h5py

ROOT = pathlib.Path(__file__).resolve().parent.parent
STOPPED = 75  # exit code of dft after a checkpoint that a signal asked for
SETTINGS = [
    "train.warmup_updates=10",
    "train.score_updates=2",
    "sampler.width=16",
    "score.width=16",
    "checkpoint.every=25",
    "evaluate.every=100",
    "compute.threads=1",
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="runs that are killed (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")
    parser.add_argument("--config", default="configs/quick.toml", help="what is trained (default configs/quick.toml)")
    parser.add_argument("--iterations", type=int, default=400, help="iterations of a run (default 400)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as for dft")
    parser.add_argument("--ranks", default="1,2,3,4,6", help="numbers of ranks to choose from (default 1,2,3,4,6)")
    parser.add_argument("--reduction", default="exact", help="compute.reduction (default exact; none: left out)")
    parser.add_argument("--kills", type=float, default=3.0, help="kills of a run on average, about (default 3)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a job hangs (default 120)")
    parser.add_argument("--directory", type=pathlib.Path, help="where the runs go and stay (default: temporary)")
    return parser.parse_args()


@dataclasses.dataclass
class Ended:
    """What became of one job."""

    code: int | None  # None: it was still there at its time limit
    seconds: float
    output: str
    done: str  # what was done to it: "" if nothing


class Drill:
    """One directory, one seed, and the violations that were found."""

    def __init__(self, options, home):
        self.options, self.home = options, home
        self.random = random.Random(options.seed)
        self.ranks = [int(count) for count in options.ranks.split(",")]
        self.violations = []

    def command(self, ranks, run):
        settings = SETTINGS + [f"train.iterations={self.options.iterations}"]
        if self.options.reduction != "none":
            settings.append(f"compute.reduction={self.options.reduction}")
        command = ["launch/mpirun.sh", str(ranks), "train", self.options.config, "--run", str(run)]
        for setting in settings + self.options.set:
            command += ["--set", setting]
        # What a requeued job does: a run that has not got as far as its configuration starts anew.
        return command + ["--resume"] * (run / "config.toml").exists()

    def job(self, ranks, run, victim=None, how=None, when=None):
        """Runs a job to its end; after `when` seconds the victim, a rank or "mpirun", gets the signal `how`."""
        log = open(self.home / f"{run.name}.log", "a+", encoding="utf-8", errors="replace")
        command = self.command(ranks, run)
        log.write(f"\n$ {' '.join(command)}   # {how} on {victim} after {when} s\n")
        log.flush()
        before = log.tell()
        began = time.monotonic()
        # A session of its own: a signal to this script's group is not for the job.
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        done = ""
        while process.poll() is None and time.monotonic() - began < self.options.limit:
            if when is not None and not done and time.monotonic() - began >= when:
                target = process.pid if victim == "mpirun" else ranks_of(process.pid).get(victim)
                if target is not None:  # else the rank is not there yet: a moment later
                    try:
                        os.kill(target, how)
                        done = f"{how.name} on {victim}"
                    except ProcessLookupError:
                        pass
            time.sleep(0.01)
        code = process.poll()
        if code is None or not self.is_gone(run):
            self.kill_all(process.pid, run)
            process.wait()
            code = None
        log.seek(before)
        return Ended(code, time.monotonic() - began, log.read(), done)

    def is_gone(self, run):
        """Whether no rank is left soon after mpirun has gone; ranks of a killed mpirun need a moment to notice."""
        until = time.monotonic() + 30
        while processes_with(str(run)):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def kill_all(self, mpirun, run):
        for process in [mpirun, *processes_with(str(run))]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def violation(self, run, what, ended=None):
        self.violations.append(f"{run.name}: {what}")
        print(f"VIOLATION {run.name}: {what}", flush=True)
        if ended:
            print(ended.output[-3000:], flush=True)

    def whole(self):
        """The uninterrupted runs, one for each number of ranks: their common hash, and seconds by number of ranks."""
        hashes, seconds = {}, {}
        for ranks in self.ranks:
            run = self.home / f"whole-{ranks}"
            ended = self.job(ranks, run)
            if ended.code != 0:
                self.violation(run, f"exit code {ended.code} of an uninterrupted run", ended)
                continue
            hashes[ranks], seconds[ranks] = sha256(run), ended.seconds
            print(f"uninterrupted on {ranks} ranks: {ended.seconds:.1f} s, {hashes[ranks]}", flush=True)
        if len(set(hashes.values())) > 1:
            self.violation(self.home, "uninterrupted runs on several numbers of ranks differ")
        return next(iter(hashes.values()), None), seconds

    def run(self, number, wanted, seconds):
        """One run, killed until it is done; the row of the table."""
        run = self.home / f"run-{number:02d}"
        counts, codes, tried = [], [], collections.Counter()
        kills = 0
        while True:
            ranks = self.random.choice([count for count in self.ranks if count not in counts[-1:]] or self.ranks)
            counts.append(ranks)
            whole = seconds.get(ranks, 5.0)
            # Beyond three times the average they are let through, so that a run has an end.
            if kills < 3 * self.options.kills:
                victim = self.random.choice([*range(ranks), "mpirun"])
                how = self.random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
                # A part of a job gets through this much of a run on average.
                when = self.random.uniform(0.0, 2 * whole / (1 + self.options.kills) + 1.0)
                ended = self.job(ranks, run, victim, how, when)
            else:
                ended = self.job(ranks, run)
            codes.append(ended.code)
            if ended.done:
                kills += 1
                tried[ended.done.split()[0]] += 1
            if ended.code is None:
                self.violation(run, f"a job of {ranks} ranks hung after {ended.done or 'nothing'}", ended)
                break
            if ended.code == 0:
                break
            if not ended.done:
                self.violation(run, f"exit code {ended.code} without a signal", ended)
                break
            # Known: Open MPI's mpirun returns 1 when it gets SIGTERM itself. 128 + n: ended by signal n before it was
            # watched for, or for good; negative: mpirun itself was, by SIGPIPE (13) if it talks to a rank that just died.
            by_signal = [128 + number for number in (9, 10, 15)] + [-number for number in (9, 10, 13, 15)]
            known = [STOPPED, *by_signal] + [1] * ended.done.startswith(("SIGTERM on mpirun", "SIGKILL"))
            if ended.code not in known or "panicked" in ended.output:
                self.violation(run, f"exit code {ended.code} after {ended.done}", ended)
                break
        self.check(run, wanted)
        signals = " ".join(f"{count} {name}" for name, count in sorted(tried.items()))
        found = sha256(run) or "none"
        print(f"{number:3d}  {'→'.join(map(str, counts)):24s} {kills:2d}  {signals:34s} {found[:16]}", flush=True)
        return kills

    def check(self, run, wanted):
        if sha256(run) != wanted:
            self.violation(run, f"SHA-256 {sha256(run)}, wanted {wanted}")
        try:
            with h5py.File(run / "run.h5", "r") as file:
                rows = file["train/iteration"][:].tolist()
        except (OSError, KeyError) as error:
            self.violation(run, f"run.h5 does not open: {error}")
            return
        if rows != list(range(1, self.options.iterations + 1)):
            self.violation(run, f"run.h5 has {len(rows)} rows that are not 1 to {self.options.iterations}")


def sha256(run):
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))["parameters_sha256"]
    except (OSError, ValueError):
        return None


def ranks_of(launcher):
    """Process ids below `launcher` by rank."""
    parents = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
    found = {}
    for process in parents:
        above = parents.get(process)
        while above not in (None, 0, 1, launcher):
            above = parents.get(above)
        if above != launcher:
            continue
        try:
            environment = pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in environment:
            if variable.startswith((b"OMPI_COMM_WORLD_RANK=", b"PMIX_RANK=")):
                found[int(variable.split(b"=")[1])] = process
    return found


def processes_with(word):
    """Process ids of dft whose command line has `word`; those that are dead and not yet reaped have none."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if word in words and words[0].endswith("/dft"):
            found.append(int(entry.parent.name))
    return found


def main():
    options = arguments()
    home = options.directory or pathlib.Path(tempfile.mkdtemp(prefix="kill-at-random-"))
    home.mkdir(parents=True, exist_ok=True)
    if any(home.iterdir()):
        sys.exit(f"{home} is not empty; choose another --directory")
    drill = Drill(options, home)
    wanted, seconds = drill.whole()
    if wanted is None:
        sys.exit(1)
    print("run  ranks                    kills signals                         SHA-256", flush=True)
    kills = sum(drill.run(number, wanted, seconds) for number in range(1, options.runs + 1))
    print(f"{options.runs} runs, {kills} kills, {len(drill.violations)} violations")
    for violation in drill.violations:
        print(f"  {violation}")
    if drill.violations or options.directory:
        print(f"runs and logs are in {home}")
    else:
        shutil.rmtree(home)
    sys.exit(1 if drill.violations else 0)


if __name__ == "__main__":
    main()
