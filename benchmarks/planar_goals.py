#!/usr/bin/env python3
"""Goals of the two-dimensional benchmark, checked on the results.json of `dft compare configs/benchmarks/planar.toml`.

    python3 benchmarks/planar_goals.py runs/planar/results.json [METHOD ...]

For each trained method (default: kl and dft) the median over seeds of each quantity, its goal, and whether it is met.
Exit code 1 if a goal is missed.
"""

import json
import statistics
import sys


def goals(target):
    """(what, how it follows from a row's metrics, least, most) for one target."""

    def ratio(name):
        return lambda m: m[name]["value"] / m[name]["floor"]

    def value(name):
        return lambda m: m[name]["value"]

    def error(name):
        return lambda m: abs(m[name]["value"] - m[name]["floor"])

    rows = [
        ("KSD in floors", ratio("ksd"), 0.0, 1.15),
        ("sliced W2 in floors", ratio("sliced_w2"), 0.0, 1.5),
    ]
    if target == "mog2":
        rows.append(("part of mode 0", value("mode_fraction_0"), 0.45, 0.55))
    if target in ("mog2-unequal", "three-modes"):
        rows.append(("largest error of a weight", value("mode_error"), 0.0, 0.05))
    if target == "donut":
        # n R² is about exponential with mean 1 for a uniform angle: 3.0 is its upper 5 % point.
        rows.append(("Rayleigh statistic", value("rayleigh"), 0.0, 3.0))
    if target == "funnel":
        rows.append(("error of the mean of x2", error("mean_1"), 0.0, 0.4))
        rows.append(("deviation of x2 in truths", ratio("deviation_1"), 0.85, 1.15))
    return rows


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    results = json.load(open(sys.argv[1], encoding="utf-8"))
    methods = sys.argv[2:] or ["kl", "dft"]
    targets = list(dict.fromkeys(row["target"] for row in results))
    missed = 0
    for method in methods:
        for target in targets:
            rows = [r for r in results if (r["method"], r["target"], r["setting"]) == (method, target, "trained")]
            failed = [r for r in rows if r.get("failure")]
            if not rows:
                continue
            if failed:
                print(f"MISS {method:8s} {target:13s} {len(failed)} of {len(rows)} seeds have no scores")
                missed += 1
            seconds = statistics.median(r["seconds"] for r in rows)
            print(f"     {method:8s} {target:13s} {seconds:.0f} s of training")
            for what, follow, least, most in goals(target):
                values = sorted(follow(r["metrics"]) for r in rows if r not in failed)
                if not values:
                    continue
                middle = statistics.median(values)
                met = least <= middle <= most
                missed += not met
                wanted = f"{least} to {most}" if least else f"at most {most}"
                spread = " ".join(f"{value:.3f}" for value in values)
                print(f"{'ok  ' if met else 'MISS'} {method:8s} {target:13s} {what}: {middle:.3f} ({spread}), wanted {wanted}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
