#!/usr/bin/env python3
"""Where an energy's Langevin chains drift to: from noise, and from test images with noise of several levels.

    python benchmarks/energy_drift.py configs/weights/mnist-energy.safetensors
    python benchmarks/energy_drift.py mine.safetensors --samples 1000 --steps 10 50 200 --step-size 0.25

An energy that models noisy data keeps what it is given: chains that start at data with noise sigma and are annealed from
there end in the classes, and at the Fréchet distance, that they started in. A drift that begins at some sigma says at
which noise level the energy is wrong. Written from the formulas alone with PyTorch and SciPy (launch/setup.sh
--full-torch; pip install scipy), so it checks the network, the chains and the distance of `dft evaluate` as well.
"""

import argparse
import json
import math

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F


def read_weights(path):
    """Metadata and tensors of a safetensors file of f32."""
    data = open(path, "rb").read()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            values = np.frombuffer(data[8 + length + start : 8 + length + end], dtype="<f4")
            tensors[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return header.get("__metadata__", {}), tensors


def read_images(path):
    pixels = np.frombuffer(open(path, "rb").read()[16:], dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.float32) / 255)


class Energy:
    """E(x) = |x - f(x)|^2 / (2 sigma0^2) with the U-Net f of src/model/unet.rs."""

    def __init__(self, path):
        metadata, self.w = read_weights(path)
        spec = json.loads(metadata["energy"])
        if spec["kind"] != "unet":
            raise SystemExit(f"{path} holds a {spec['kind']}; this script knows the U-Net")
        self.sigma0 = spec["sigma0"]

    def f(self, x):
        w = self.w

        def conv(name, h, **how):
            return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], **how)

        def up(name, h):
            return F.conv_transpose2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)

        def linear(name, h):
            return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

        half = F.silu(conv("enter", x, stride=2, padding=1))
        half = half + F.silu(conv("outer", half, padding=1))
        quarter = F.silu(conv("down", half, stride=2, padding=1))
        code = F.silu(linear("middle", F.silu(linear("squeeze", quarter.flatten(1)))))
        quarter = F.silu(quarter + linear("expand", code).view_as(quarter))
        quarter = F.silu(conv("inner", quarter, padding=1))
        merged = F.silu(up("up", quarter) + half)
        merged = merged + F.silu(conv("merge", merged, padding=1))
        return up("leave", merged)

    def gradient(self, x):
        """sigma0^2 times the gradient of E."""
        x = x.detach().requires_grad_(True)
        energy = (x - self.f(x)).square().sum() / 2
        return torch.autograd.grad(energy, x)[0]

    def anneal(self, x, steps, first, last, step_size, generator):
        """Langevin steps through tempered levels that fall geometrically, and a denoising step."""
        for t in range(steps):
            sigma = math.exp(math.log(first) + t / max(1, steps - 1) * math.log(last / first))
            noise = torch.randn(x.shape, generator=generator)
            x = x - step_size * self.gradient(x) + math.sqrt(2 * step_size) * sigma * noise
        return x - self.gradient(x)


class Classifier:
    """The LeNet-5 of src/model/lenet.rs."""

    def __init__(self, path):
        _, self.w = read_weights(path)

    @torch.no_grad()
    def __call__(self, x):
        """Features [B, 84] and class probabilities [B, 10]."""
        w = self.w
        h = F.conv2d(x.clamp(0, 1), w["first.weight"], w["first.bias"], padding=2).tanh()
        h = F.conv2d(F.avg_pool2d(h, 2), w["second.weight"], w["second.bias"]).tanh()
        h = F.linear(F.avg_pool2d(h, 2).flatten(1), w["wide.weight"], w["wide.bias"]).tanh()
        h = F.linear(h, w["features.weight"], w["features.bias"]).tanh()
        return h.double().numpy(), F.linear(h, w["classes.weight"], w["classes.bias"]).softmax(1)


def moments(features):
    return features.mean(0), np.cov(features, rowvar=False)


def distance(a, b):
    (m, s), (n, t) = a, b
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((m - n) ** 2).sum() + np.trace(s + t - 2 * root))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("energy")
    parser.add_argument("--features", default="configs/weights/mnist-lenet.safetensors")
    parser.add_argument("--data", default="data/mnist")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 200], help="of chains from noise")
    parser.add_argument("--levels", type=float, nargs="*", default=[0.2, 0.4, 0.7, 1.0, 1.5, 3.0], help="of chains from data, 60 steps")
    parser.add_argument("--step-size", type=float, default=0.5, help="as a fraction of sigma^2")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    energy, classify = Energy(arguments.energy), Classifier(arguments.features)
    train = read_images(f"{arguments.data}/train-images-idx3-ubyte")
    test = read_images(f"{arguments.data}/t10k-images-idx3-ubyte")[: arguments.samples]
    reference = moments(np.concatenate([classify(part)[0] for part in train[:30000].split(1000)]))
    generator = torch.Generator().manual_seed(arguments.seed)

    def report(name, x):
        features, probabilities = classify(x)
        shares = torch.bincount(probabilities.argmax(1), minlength=10) / len(x)
        print(
            f"{name:28} | {distance(moments(features), reference):5.2f} | {x.clamp(0, 1).std(0).mean():.3f}"
            f" | {(probabilities.amax(1) < 0.9).float().mean():.3f} | "
            + " ".join(f"{100 * share:4.1f}" for share in shares),
            flush=True,
        )

    def chains(start, steps, first):
        parts = [energy.anneal(x, steps, first, 0.1, arguments.step_size, generator) for x in start.split(250)]
        return torch.cat(parts)

    print("start, steps                 | FD    | pixel sd | unsure | shares of classes 0 to 9, percent")
    report("test images", test)
    for level in arguments.levels:
        noisy = test + level * torch.randn(test.shape, generator=generator)
        report(f"data + noise {level}, 60", chains(noisy, 60, level))
    for steps in arguments.steps:
        noise = 0.13 + 3 * torch.randn(test.shape, generator=generator)
        report(f"noise 3.0, {steps}", chains(noise, steps, 3.0))


if __name__ == "__main__":
    main()
