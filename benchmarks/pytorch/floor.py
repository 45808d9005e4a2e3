#!/usr/bin/env python3
"""The least that an iteration of a configuration can take here: its matrix products and convolutions alone.

    floor.py CONFIG... [--threads N] [--rows N]

Counts the linear maps that one iteration of the loop needs (forward, at the weights, at the input), times each shape by
itself through the libraries that libtorch asks, best of many, and adds up. What is measured above that sum is
activations, noise, optimisers, calls and the memory in between. `--rows` is the batch of one rank.
"""

import argparse
import time
import tomllib

import torch
import torch.nn.functional as F


def least_seconds(run, repeat=30):
    """The least of some repeats: other work on the machine only ever adds time."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


class Products:
    """Matrix products by shape: how often, and what one takes."""

    def __init__(self):
        self.seconds, self.operations = 0.0, 0.0

    def add(self, times, run, operations):
        self.seconds += times * least_seconds(run)
        self.operations += times * operations

    def perceptron(self, rows, widths, times, wants_weights, wants_input):
        """Forward and, as wanted, backward passes of a perceptron, `times` times each."""
        for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
            x, y, w = torch.randn(rows, inputs), torch.randn(rows, outputs), torch.randn(outputs, inputs)
            operations = 2 * rows * inputs * outputs
            self.add(times, lambda: x @ w.T, operations)
            if wants_weights:
                self.add(times, lambda: y.T @ x, operations)
            if wants_input or (wants_weights and index > 0):
                self.add(times, lambda: y @ w, operations)

    def logistic(self, rows, data, features):
        """Score and product: logits twice and along the direction, and two sums over the rows."""
        x, w, y = torch.randn(data, features), torch.randn(rows, features), torch.randn(rows, data)
        operations = 2 * rows * data * features
        self.add(3, lambda: w @ x.T, operations)
        self.add(2, lambda: y @ x, operations)

    def unet(self, rows, width, side, maps, weights, inputs):
        """Passes through a U-Net of src/model/unet.rs: linear maps as such, and gradients at weights and inputs."""
        half, quarter = side // 2, side // 4
        flat = 2 * width * quarter * quarter
        layers = [
            (1, width, side, 4, 2, False), (width, width, half, 3, 1, False), (width, 2 * width, half, 4, 2, False),
            (2 * width, 2 * width, quarter, 3, 1, False), (2 * width, width, quarter, 4, 2, True),
            (width, width, half, 3, 1, False), (width, 1, half, 4, 2, True),
        ]
        last = torch.channels_last
        for index, (inputs_, outputs, size, kernel, stride, transposed) in enumerate(layers):
            shape = (inputs_, outputs) if transposed else (outputs, inputs_)
            w = torch.randn(*shape, kernel, kernel)
            x = torch.randn(rows, inputs_, size, size).contiguous(memory_format=last)
            convolve = F.conv_transpose2d if transposed else F.conv2d
            y = convolve(x, w, stride=stride, padding=1)
            places = (size if transposed else size // stride) ** 2
            operations = 2 * rows * inputs_ * outputs * kernel * kernel * places
            self.add(maps, lambda: convolve(x, w, stride=stride, padding=1), operations)

            def backward(mask):
                zeros = [0, 0]
                return lambda: torch.ops.aten.convolution_backward(
                    y, x, w, [outputs], [stride] * 2, [1, 1], [1, 1], transposed, zeros, 1, mask
                )

            self.add(weights, backward([False, True, True]), operations)
            at_inputs = inputs if index > 0 else inputs - weights + 1  # a sampler's first layer needs none
            self.add(at_inputs, backward([True, False, False]), operations)
        for inputs_, outputs in [(flat, 128), (128, 128), (128, flat)]:
            x, y, w = torch.randn(rows, inputs_), torch.randn(rows, outputs), torch.randn(outputs, inputs_)
            operations = 2 * rows * inputs_ * outputs
            self.add(maps, lambda: x @ w.T, operations)
            self.add(weights, lambda: y.T @ x, operations)
            self.add(inputs, lambda: y @ w, operations)


def of_config(config, rows):
    products = Products()
    train, target = config["train"], config["target"]
    if target["kind"] == "energy":
        # Energy: the network, its adjoint, and the derivatives of both; score network and sampler: forward and backward.
        products.unet(rows, config["score"]["width"], 28, maps=6, weights=2, inputs=2)
        return products
    dimension = 56 if target["kind"] == "logistic" else 2
    widths = lambda section, ends: [ends[0], *[config[section]["width"]] * config[section]["depth"], ends[1]]
    sampler = widths("sampler", (config["sampler"]["latent"], 2 * dimension))
    score = widths("score", (2 * dimension + 1, dimension))
    updates = train["score_updates"]
    products.perceptron(rows, sampler, updates, False, False)
    products.perceptron(rows, score, updates, True, False)
    products.perceptron(rows, score, 1, False, True)
    products.perceptron(rows, sampler, 1, True, False)
    if target["kind"] == "logistic":
        products.logistic(rows, 2000, 55)
    return products


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, help="in place of the configuration's batch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    for path in arguments.config:
        with open(path, "rb") as file:
            config = tomllib.load(file)
        rows = arguments.rows or config["train"]["batch"]
        products = of_config(config, rows)
        rate = products.operations / products.seconds / 1e9
        print(
            f"{path}, {rows} rows, {arguments.threads} threads: {1e3 * products.seconds:.2f} ms an iteration at least, "
            f"{products.operations / 1e9:.2f} GFLOP at {rate:.0f} GFLOP/s; at most {1 / products.seconds:.1f} iterations/s"
        )


if __name__ == "__main__":
    main()
