#!/usr/bin/env python3
"""Predicts how well training scales to many ranks, from a measured iteration and a measured all-reduce.

    .venv/bin/python benchmarks/scaling.py [--latency-us A --bandwidth-gb B] [--exact] [--rehearse CONFIG ...]

A and B are what `examples/all_reduce.rs` fits on 2 ranks: seconds = A + bytes/B (default: LATENCY_US and
BANDWIDTH_GB below). Of another
number of measured ranks or of a network give its constants the same way. The iterations are those of ITERATIONS, or are
measured now, by `dft train CONFIG --rehearse 1`.

**The model.** An iteration computes, sends and updates, and nothing overlaps:

    T(p) = computing / share + updating + sum over its all-reduces of n bytes of R(n, p)

Strong scaling divides one batch over the ranks (share = p): computing is taken to divide perfectly, which small pieces do
not, so this is an upper bound; efficiency = T(1) / (p T(p)), and there is none for more ranks than rows. Weak scaling gives
each rank such a batch (share = 1); efficiency = T(1) / T(p).

An all-reduce over p ranks with latency a of a message and bandwidth B of a link, additions included (Thakur, Rabenseifner
and Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19(1), 2005):

    ring                          R = 2 (p - 1) a + 2 (p - 1)/p n/B      every link carries a piece at every step
    tree (recursive doubling)     R = ceil(log2 p) (a + n/B)             every rank sends all n bytes in each round

On 2 ranks they are 2 a + n/B and a + n/B, so the fitted A is 2 a for the ring and a for the tree, and B is B. The script
names the faster of the two for each size; an MPI library chooses by size as well, and one that also halves and doubles
(2 log2 p a + 2 (p - 1)/p n/B) is better than both where p is large and n is not small.

**This is a prediction and no measurement.** It says nothing of ranks that wait for the slowest, of a network that many hosts
share, nor of evaluations and checkpoints; a link between two processes of one host is faster than most networks, so give
a network's constants for a job on several hosts.
"""

import argparse
import math
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Fitted to f32 on 2 ranks of one host through shared memory, 2026-11-22, two cores of an Intel Xeon.
LATENCY_US, BANDWIDTH_GB = 1.5, 3.85

# Seconds of computing and of updating in an iteration of one rank with one thread, rows of the batch, and the bytes of its
# all-reduces, by `dft train CONFIG --rehearse 1 --set compute.threads=1`: the least of five, there and then.
ITERATIONS = {
    "planar, MLP of 3 x 128": {"computing": 8.1e-3, "updating": 0.23e-3, "batch": 512, "bytes": [136_200] * 5 + [135_700]},
    "logistic, 56 unknowns, MLP of 3 x 256": {"computing": 82.2e-3, "updating": 1.2e-3, "batch": 1024, "bytes": [700_600] * 5 + [699_800]},
    "mnist, U-Net of width 24": {"computing": 185.5e-3, "updating": 2.3e-3, "batch": 128, "bytes": [5_574_600]},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-us", type=float, default=LATENCY_US, help="A, of 2 ranks, in µs (default %(default)s)")
    parser.add_argument("--bandwidth-gb", type=float, default=BANDWIDTH_GB, help="B in GB/s (default %(default)s)")
    parser.add_argument("--ranks", default="2,8,64,512", help="numbers of ranks (default %(default)s)")
    parser.add_argument("--exact", action="store_true", help="sums of i64: twice the bytes, and an all-reduce of the units")
    parser.add_argument("--rehearse", nargs="+", metavar="CONFIG", help="measure these instead of the recorded iterations")
    return parser.parse_args()


def ring(size, ranks, latency, bandwidth):
    """Seconds of an all-reduce of `size` bytes round a ring; `latency` is that of 2 ranks, two messages."""
    return (ranks - 1) * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def tree(size, ranks, latency, bandwidth):
    """Seconds of an all-reduce of `size` bytes by recursive doubling; `latency` is that of 2 ranks, one message."""
    return math.ceil(math.log2(ranks)) * (latency + size / bandwidth)


def rehearse(config):
    """Measures an iteration of a configuration on one rank with one thread."""
    command = ["target/release/dft", "train", config, "--rehearse", "1", "--set", "compute.threads=1"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    seconds = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}
    size = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

    def time(row):
        number, unit = re.search(rf"^\s*{row}\s+([\d.]+) (\S+)", text, re.MULTILINE).groups()
        return float(number) * seconds[unit]

    sent = re.search(r"^\s*all-reduces\s+\d+ an iteration: (.*)$", text, re.MULTILINE).group(1)
    sizes = [round(float(number) * size[unit]) for number, unit in re.findall(r"([\d.]+) (\w+)", sent)]
    batch = int(re.search(r"batch (\d+)", text).group(1))
    return {"computing": time("computing"), "updating": time("updating"), "batch": batch, "bytes": sizes}


def predict(iteration, ranks, reduce, link, exact):
    """Efficiency of `ranks` ranks, strong and weak, and the seconds of an iteration that go into all-reduces."""
    sizes = [part for size in iteration["bytes"] for part in ([2 * size, 64] if exact else [size])]
    sending = sum(reduce(size, ranks, *link) for size in sizes)
    alone = iteration["computing"] + iteration["updating"]
    strong = alone / (iteration["computing"] + ranks * (iteration["updating"] + sending))
    return strong, alone / (alone + sending), sending


def main():
    options = arguments()
    link = options.latency_us * 1e-6, options.bandwidth_gb * 1e9
    iterations = {config: rehearse(config) for config in options.rehearse} if options.rehearse else ITERATIONS
    print(f"PREDICTION from a link of {options.latency_us:g} µs and {options.bandwidth_gb:g} GB/s between 2 ranks")
    for name, iteration in iterations.items():
        sent = ", ".join(f"{size / 1024:.0f} KiB" for size in iteration["bytes"])
        times = f"{iteration['computing'] * 1e3:.1f} ms computing, {iteration['updating'] * 1e3:.2f} ms updating"
        print(f"\n{name}: batch {iteration['batch']}, {times}, all-reduces of {sent} as f32{', sent as i64' * options.exact}")
        print(f"{'ranks':>6} {'model':>6} {'all-reduces':>12} {'strong scaling':>15} {'weak scaling':>13}")
        for ranks in map(int, options.ranks.split(",")):
            rows = [(model.__name__, *predict(iteration, ranks, model, link, options.exact)) for model in (ring, tree)]
            faster = min(rows, key=lambda row: row[3])[0]
            for model, strong, weak, sending in rows:
                divided = f"{strong:.1%}" if ranks <= iteration["batch"] else "fewer rows"
                mark = "  faster" if model == faster else ""
                print(f"{ranks:>6} {model:>6} {sending * 1e3:>9.3f} ms {divided:>15} {weak:>13.1%}{mark}")


if __name__ == "__main__":
    main()
