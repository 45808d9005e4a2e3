#!/usr/bin/env python3
"""The measurements and statistics of side-by-side.sh, which sets what this reads from the environment:

    side_by_side.py RUNS REPORT.md

A round measures dft, then each variant of the twin, under the same setting; ratios are dft's value over the twin's of the
same round, and the report has their median and range over all rounds but the first. Every measurement is also appended to
RUNS/measurements.jsonl.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHON, DFT, DEVICE = (os.environ[name] for name in ("PYTHON", "DFT", "DEVICE"))
PAIRS, RANKS, SCALE = int(os.environ["PAIRS"]), int(os.environ["RANKS"]), float(os.environ["SCALE"])
CORE, SAMPLES, IMAGES = os.environ["CORE"], int(os.environ["SAMPLES"]), int(os.environ["IMAGES"])

# Configuration, settings, iterations of a measurement on a CPU: some ten seconds on one core.
CASES = {
    "planar-512": ("configs/speed/planar.toml", ["train.batch=512"], 1000),
    "planar-2048": ("configs/speed/planar.toml", ["train.batch=2048"], 300),
    "logistic": ("configs/speed/logistic.toml", [], 60),
    "mnist": ("configs/speed/mnist.toml", [], 40),
}
ON_GPU = 10  # times as many iterations there

# What is measured, and whether more of it is better.
QUANTITIES = {
    "iterations_per_second": ("iterations/s", True),
    "samples_per_second": ("samples/s", True),
    "peak_mebibytes": ("peak memory, MiB", False),
    "seconds_to_first_iteration": ("first iteration done, s", False),
}


def ended(processes):
    """Waits for processes; the largest resident set of any of them or their children, in MiB."""
    peak = 0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = max(peak, usage.ru_maxrss)
    for process in processes:
        if process.returncode != 0:
            output = pathlib.Path(process.log.name).read_text(encoding="utf-8", errors="replace")
            sys.exit(f"exit code {process.returncode} of {' '.join(process.args)}:\n{output[-3000:]}")
    return peak / 1024


def start(command, log, **variables):
    """Starts a command with its output in the file `log`."""
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, **variables})
        process.log = file
    return process


def run(command, log, **variables):
    """Runs a command; seconds of the whole process and its peak memory in MiB."""
    began = time.monotonic()
    peak = ended([start(command, log, **variables)])
    return time.monotonic() - began, peak


def pinned(ranks):
    """Before a command that is to have one core."""
    return ["taskset", "-c", CORE] if ranks == 1 and DEVICE == "cpu" else []


def settings(case):
    config, chosen, iterations = CASES[case]
    count = max(10, round(iterations * SCALE * (ON_GPU if DEVICE == "cuda" else 1)))
    samples = IMAGES if case == "mnist" else SAMPLES
    return config, [part for setting in chosen for part in ("--set", setting)], count, samples


def measure_dft(case, ranks, home):
    """dft's own numbers: the rate of its summary, and the drawing of its log."""
    config, chosen, iterations, samples = settings(case)
    launch = ["launch/mpirun.sh", str(ranks)] if ranks > 1 else [*pinned(ranks), DFT]
    common = ["--set", "compute.threads=1", "--set", f"compute.device={DEVICE}", *chosen]
    if DEVICE == "cuda":
        common += ["--set", "compute.cuda_graphs=true"]
    log = home / "dft.log"

    def train(count, directory):
        shutil.rmtree(directory, ignore_errors=True)
        count = ["--set", f"train.iterations={count}"]
        return run([*launch, "train", config, "--run", str(directory), *common, *count], log)

    first, _ = train(1, home / "first")
    _, peak = train(iterations, home / "run")
    summary = json.loads((home / "run" / "summary.json").read_text(encoding="utf-8"))
    found = {
        "iterations_per_second": summary["iterations_per_second"],
        "peak_mebibytes": peak,
        "seconds_to_first_iteration": first,
    }
    if samples > 0 and ranks == 1:  # one rank draws, however many there are
        output = home / "samples.npy"
        draw = [DFT, "sample", str(home / "run"), "--clean", "-n", str(samples), "--force", "-o", str(output)]
        run([*pinned(1), *draw, "--device", DEVICE], log)
        seconds = re.search(r"drawn in ([0-9.]+) s", log.read_text(encoding="utf-8"))
        found["samples_per_second"] = samples / max(float(seconds[1]), 0.01)
        output.unlink()
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def measure_twin(case, ranks, variant, home):
    """The same of the twin; `ddp` is eager with as many processes as ranks, the others are one with as many threads."""
    config, chosen, iterations, samples = settings(case)
    processes = ranks if variant == "ddp" else 1
    threads = 1 if variant == "ddp" or DEVICE == "cuda" else ranks
    script = [*pinned(ranks), PYTHON, "benchmarks/pytorch/timing.py", config, *chosen, "--device", DEVICE]
    script += ["--variant", "eager" if variant == "ddp" else variant, "--threads", str(threads)]

    def times(count, drawn):
        command = [*script, "--iterations", str(count), "--samples", str(drawn)]
        if processes == 1:
            seconds, peak = run(command, home / "twin-0.log")
        else:
            # As torchrun would start them, without the seconds that torchrun itself takes.
            world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
            began = time.monotonic()
            ranks_of_it = [start(command, home / f"twin-{rank}.log", RANK=str(rank), **world) for rank in range(processes)]
            peak = ended(ranks_of_it)
            seconds = time.monotonic() - began
        lines = (home / "twin-0.log").read_text(encoding="utf-8").splitlines()
        return seconds, peak, json.loads(next(line for line in lines if line.startswith("{")))

    first, _, _ = times(0, 0)
    _, _, found = times(iterations, samples if ranks == 1 else 0)
    found["seconds_to_first_iteration"] = first
    return {name: found[name] for name in QUANTITIES if name in found}


def variants(ranks):
    """Ways to run the twin under a setting."""
    on_device = ["eager", "compile", "cudagraph"] if DEVICE == "cuda" else ["eager", "compile"]
    if ranks > 1:
        on_device = ["ddp"] if DEVICE == "cuda" else ["eager", "compile", "ddp"]
    wanted = os.environ["VARIANTS"].split() or on_device
    return [variant for variant in on_device if variant in wanted]


def setting_name(ranks, variant):
    unit = "GPU" if DEVICE == "cuda" else "core"
    if ranks == 1:
        return f"1 {unit}, {variant}"
    twin = f"DDP {ranks} × 1 thread" if variant == "ddp" else f"{variant}, {ranks} threads"
    return f"{ranks} {unit}s, {twin}"


def measure(case, ranks, directory):
    """All rounds of one case under one setting: values by who and quantity, without the first round."""
    names, kept = ["dft", *variants(ranks)], []
    for number in range(PAIRS):
        values = {}
        for name in names:
            home = pathlib.Path(tempfile.mkdtemp(dir=directory))
            found = measure_dft(case, ranks, home) if name == "dft" else measure_twin(case, ranks, name, home)
            shutil.rmtree(home)
            values[name] = found
            row = {"case": case, "ranks": ranks, "round": number, "who": name, **found}
            with open(directory / "measurements.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)
        if number > 0 or PAIRS == 1:
            kept.append(values)
    return names[1:], kept


def form(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table_rows(case, ranks, names, kept):
    """One row for each variant and quantity."""
    for name in names:
        for quantity, (title, more_is_better) in QUANTITIES.items():
            if quantity not in kept[0]["dft"] or quantity not in kept[0][name]:
                continue
            own, others = ([values[who][quantity] for values in kept] for who in ("dft", name))
            # Above 1 always: dft is better.
            ratios = [a / b if more_is_better else b / a for a, b in zip(own, others)]
            medians = f"{form(statistics.median(own))} | {form(statistics.median(others))}"
            ratio = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
            yield f"| {case} | {setting_name(ranks, name)} | {title} | {medians} | {ratio} |"


def text_of(command):
    """The output of a command, or nothing where there is no such command."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = "import sys, torch; print(f'Python {sys.version.split()[0]}, PyTorch {torch.__version__}')"
    gpu = text_of(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]) if DEVICE == "cuda" else ""
    commit = text_of(["git", "rev-parse", "--short", "HEAD"])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"- {model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}" + (f"; {gpu}" if gpu else ""),
        f"- dft {commit}, {text_of(['rustc', '--version'])}; {text_of([PYTHON, '-c', versions])}",
        f"- load average before the first measurement: {load}",
    ]


def write(report, directory, about, rows):
    """The whole report, again after every case: what was measured is never lost."""
    chosen = " ".join(f"{name}={os.environ[name]!r}" for name in ("DEVICE", "CASES", "PAIRS", "SCALE", "RANKS"))
    agreement = []
    for path in sorted(directory.glob("agreement-*.txt")):
        last = path.read_text(encoding="utf-8").splitlines()[-1]
        agreement.append(f"- {path.stem.removeprefix('agreement-')}: {last}")
    lines = [
        f"# dft and its PyTorch twins, side by side, {datetime.date.today()}",
        "",
        *about,
        f"- command: `{chosen} benchmarks/side-by-side.sh`, {PAIRS} rounds, the first dropped",
        "",
        "The first iteration of both sides, from the same weights and noise (`benchmarks/pytorch/agree.py`):",
        "",
        *agreement,
        "",
        "Medians of the rounds; the ratio is above 1 where dft is better, with its range over the rounds. Iterations are those of",
        "a steady state. dft reads and records losses and gradient norms of every update; the twin does not. Samples are drawn",
        "on one core or GPU, without writing them. Peak memory is the largest resident set of a process while training. The first",
        "iteration is a process that does one and ends; of dft it also writes a record, a checkpoint and 500 samples. Compiled",
        "twins find their kernels in the cache of the round before.",
        "",
        "| case | setting, twin | quantity | dft | twin | ratio | range |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
        *rows,
    ]
    pathlib.Path(report).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    directory, report = pathlib.Path(sys.argv[1]), sys.argv[2]
    about, rows = machine(), []
    for case in os.environ["CASES"].split():
        for ranks in sorted({1, RANKS}):
            if not variants(ranks):
                continue
            names, kept = measure(case, ranks, directory)
            rows += table_rows(case, ranks, names, kept)
            write(report, directory, about, rows)
    print(f"{report}; every measurement: {directory / 'measurements.jsonl'}")


if __name__ == "__main__":
    main()
