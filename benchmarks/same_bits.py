#!/usr/bin/env python3
"""Trains three configurations on 1, 2, 3, 4, 6 and 8 ranks, interrupted and not, and prints the hashes of the parameters.

    .venv/bin/python benchmarks/same_bits.py [--ranks 1,2,3,4,6,8] [--set KEY=VALUE ...]

An interrupted run gets SIGUSR1 after its first checkpoint and is resumed on the next number of ranks. Every row of the
table should have one hash; exit code 1 if one has more. Needs dft built (launch/setup.sh), data/mnist and data/covertype
(dft data mnist, dft data covertype). Ranks may be more than cores: the hashes do not mind, and the seconds mean nothing then.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STOPPED = 75  # exit code of dft after a checkpoint that a signal asked for
EXACT = ["compute.reduction=exact", "compute.shards=24"]
# Short runs: a difference in one bit anywhere would have spread to all parameters.
CONFIGS = {
    "configs/planar/mog2.toml": [
        "train.iterations=200", "train.batch=480", "train.warmup_updates=20", "checkpoint.every=50", "evaluate.point_sets=2",
    ],
    "configs/covertype.toml": [
        "train.iterations=40", "train.batch=144", "train.warmup_updates=5", "checkpoint.every=10", "evaluate.point_sets=1",
    ],
    "configs/mnist.toml": [
        "train.iterations=16", "train.warmup_updates=2", "warm_start.updates=4", "checkpoint.every=4", "evaluate.every=8", "evaluate.samples=200",
    ],
}  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,3,4,6,8", help="numbers of ranks (default 1,2,3,4,6,8)")
    parser.add_argument("--configs", default=",".join(CONFIGS), help="which of the configurations (default: all three)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as for dft")
    return parser.parse_args()


def start(config, settings, ranks, run, resume=False):
    command = ["launch/mpirun.sh", str(ranks), "train", config, "--run", str(run)] + ["--resume"] * resume
    for setting in settings:
        command += ["--set", setting]
    log = open(run.with_suffix(".log"), "a", encoding="utf-8")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def wanted_code(process, run, codes):
    code = process.wait()
    if code not in codes:
        sys.exit(f"exit code {code}, wanted one of {codes}:\n{run.with_suffix('.log').read_text()[-3000:]}")
    return code


def whole(config, settings, ranks, run):
    wanted_code(start(config, settings, ranks, run), run, [0])


def interrupted(config, settings, first, second, run):
    """Stops the run on `first` ranks after its first checkpoint, and resumes it on `second`."""
    process = start(config, settings, first, run)
    while process.poll() is None and not list(run.glob("checkpoints/*.safetensors")):
        time.sleep(0.02)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGUSR1)
    if wanted_code(process, run, [0, STOPPED]) == 0:
        sys.exit(f"{run} was done before it could be stopped; give it more iterations")
    wanted_code(start(config, settings, second, run, resume=True), run, [0])


def result(run):
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary["parameters_sha256"], json.dumps(summary["metrics"], sort_keys=True)


def main():
    options = arguments()
    ranks = [int(count) for count in options.ranks.split(",")]
    home = pathlib.Path(tempfile.mkdtemp(prefix="same-bits-"))
    different = 0
    print(f"| configuration | {' | '.join(f'{count} ranks' for count in ranks)} | interrupted | metrics |")
    print("| --- " * (len(ranks) + 3) + "|", flush=True)
    for config in options.configs.split(","):
        settings = EXACT + CONFIGS[config] + options.set
        name = pathlib.Path(config).stem
        began, results, cells, stopped = time.monotonic(), [], [], []
        for index, count in enumerate(ranks):
            run = home / f"{name}-{count}"
            whole(config, settings, count, run)
            results.append(result(run))
            cells.append(f"`{results[-1][0][:12]}`")
            after = ranks[(index + 1) % len(ranks)]
            run = home / f"{name}-{count}-{after}"
            interrupted(config, settings, count, after, run)
            results.append(result(run))
            stopped.append(f"{count}→{after} `{results[-1][0][:12]}`")
        hashes, metrics = ({one[part] for one in results} for part in (0, 1))
        different += len(hashes) > 1 or len(metrics) > 1
        verdict = "equal" if len(metrics) == 1 else f"{len(metrics)} different"
        print(f"| {name} | {' | '.join(cells)} | {', '.join(stopped)} | {verdict} |", flush=True)
        print(f"{name}: {', '.join(sorted(hashes))}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"logs and runs: {home}", file=sys.stderr)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
