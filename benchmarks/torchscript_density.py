#!/usr/bin/env python3
"""A density that dft does not know, as a TorchScript file: where is a receiver that measured its distances to beacons?

    python benchmarks/torchscript_density.py write configs/weights/beacons.pt
    python benchmarks/torchscript_density.py check samples.npy     # compares samples with quadrature on a grid

Two beacons on a line cannot tell a place from its mirror image, and the places between fit almost as well: the density
is a crescent. A third beacon, with a worse clock, makes one of its horns likelier. Needs PyTorch and NumPy: launch/setup.sh --full-torch --tests, then .venv/bin/python.
"""

import argparse
import io
import zipfile

import numpy as np
import torch


class Beacons(torch.nn.Module):
    """log of prior times likelihood, up to a constant: x [B, 2] in km to [B]."""

    def __init__(self):
        super().__init__()
        # Buffers or parameters: dft takes both as constants.
        self.register_buffer("places", torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))
        self.distances = torch.nn.Parameter(torch.tensor([1.4, 3.2, 2.1]))
        self.register_buffer("errors", torch.tensor([0.25, 0.5, 1.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offsets = x.unsqueeze(1) - self.places
        # The small number keeps the derivatives finite on a beacon.
        distances = (offsets.square().sum(-1) + 1e-6).sqrt()
        misfit = ((distances - self.distances) / self.errors).square().sum(-1)
        prior = (x / 3.0).square().sum(-1)
        return -0.5 * (misfit + prior)


def write(file):
    """What torch.jit.script(Beacons()).save(file) writes, less the absolute path of this script."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Beacons()), buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(file, "w") as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry, whole.read(entry))


def quadrature():
    """Mean, standard deviation and probability of x2 > 0, on a grid that holds all but 1e-9 of the mass."""
    axis = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weight = torch.softmax(Beacons().double()(x), 0)[:, None]
    mean = (weight * x).sum(0)
    return mean, (weight * (x - mean).square()).sum(0).sqrt(), (weight[:, 0] * (x[:, 1] > 0)).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["write", "check"])
    parser.add_argument("file")
    arguments = parser.parse_args()
    if arguments.verb == "write":
        write(arguments.file)
        return
    x = torch.from_numpy(np.load(arguments.file)).double()
    found = (x.mean(0), x.std(0), (x[:, 1] > 0).double().mean())
    for name, wanted, got in zip(["mean", "standard deviation", "P(x2 > 0)"], quadrature(), found):
        print(f"{name:20} quadrature {np.round(wanted.numpy(), 3)}   {len(x)} samples {np.round(got.numpy(), 3)}")


if __name__ == "__main__":
    main()
