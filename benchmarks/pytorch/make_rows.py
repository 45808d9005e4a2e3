#!/usr/bin/env python3
"""Writes the table of configs/speed/logistic.toml: 2,500 rows of 54 features and a label, 2,000 of them to train on.

    python3 benchmarks/pytorch/make_rows.py [OUTPUT.csv]

Features are standard normal, labels Bernoulli with the logit of weights N(0, 1/4) and an intercept of 1/2. The seed is
fixed. Needs numpy.
"""

import pathlib
import sys

import numpy

ROWS, FEATURES = 2500, 54
OUTPUT = pathlib.Path(__file__).resolve().parents[2] / "data" / "speed-logistic.csv"


def main():
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    random = numpy.random.default_rng(0)
    x = random.standard_normal((ROWS, FEATURES))
    weights = 0.5 * random.standard_normal(FEATURES)
    y = random.random(ROWS) < 1 / (1 + numpy.exp(-(x @ weights + 0.5)))
    output.parent.mkdir(parents=True, exist_ok=True)
    header = ",".join([f"x{i}" for i in range(FEATURES)] + ["y"])
    form = ["%.6f"] * FEATURES + ["%d"]
    numpy.savetxt(output, numpy.column_stack([x, y]), fmt=form, delimiter=",", header=header, comments="")
    print(f"{output}: {ROWS} rows, {y.mean():.3f} of them with the label 1")


if __name__ == "__main__":
    main()
