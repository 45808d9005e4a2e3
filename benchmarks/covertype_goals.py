"""Holds the results of `dft compare configs/benchmarks/covertype.toml` against the goals of the benchmark.

    python3 benchmarks/covertype_goals.py runs/covertype/results.json

Every goal is of each split; the table has the worst split, and all of them in brackets. Standard library only.
"""

import json
import sys

METHODS = ["kl", "dft", "huber", "kl-dft", "laplace", "dsvi", "nuts", "hmc", "sgld", "svgd"]


def off(name):
    """How far a score is from that of the reference draws."""
    return lambda row: abs(row["metrics"][name]["value"] - row["metrics"][name]["floor"])


GOALS = [
    ("accuracy, points from the reference's, at most 0.05", lambda row: 100 * off("accuracy")(row), 0.05),
    ("log predictive density from the reference's, at most 0.0005", off("log_predictive"), 0.0005),
    ("means, root mean square error in deviations, at most 0.1",
     lambda row: row["metrics"]["mean_error_rms"]["value"], 0.1),
    ("deviations, largest relative error, at most 0.1",
     lambda row: row["metrics"]["deviation_error_max"]["value"], 0.1),
    ("sliced W2 in floors (no goal)",
     lambda row: row["metrics"]["sliced_w2"]["value"] / row["metrics"]["sliced_w2"]["floor"], None),
    ("seconds, at most 300", lambda row: row["seconds"], 300),
]


def cell(values, goal):
    listed = " ".join(f"{value:.3g}" for value in values)
    verdict = "" if goal is None else " ok" if max(values) <= goal else " **MISS**"
    return f"{max(values):.3g} ({listed}){verdict}"


def main(path):
    rows = json.load(open(path))
    posterior = [row for row in rows if row["target"] == "posterior" and not row.get("failure")]
    print("| method | " + " | ".join(name for name, _, _ in GOALS) + " |")
    print("|---" * (len(GOALS) + 1) + "|")
    for method in METHODS:
        for setting in ["trained", "fitted", "same evaluations", "same seconds"]:
            found = [row for row in posterior if (row["method"], row["setting"]) == (method, setting)]
            if found:
                cells = [cell([value(row) for row in found], goal) for _, value, goal in GOALS]
                name = method if setting in ["trained", "fitted"] else f"{method}, {setting}"
                print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| literature: best test accuracy, mean and splits | goal 76.36 % |\n|---|---|")
    for method in ["kl", "dft", "sgld-100", "svgd"]:
        best = [row["metrics"]["accuracy_best"]["value"] for row in rows
                if row["target"] == "literature" and row["method"] == method and not row.get("failure")]
        if best:
            mean = sum(best) / len(best)
            listed = " ".join(f"{100 * value:.2f}" for value in best)
            print(f"| {method} | {100 * mean:.2f} % ({listed}) {'ok' if mean >= 0.7636 else '**MISS**'} |")
    failures = [row for row in rows if row.get("failure")]
    for row in failures:
        print(f"\n{row['target']} · {row['method']}, {row['setting']} · seed {row['seed']}: {row['failure']}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
