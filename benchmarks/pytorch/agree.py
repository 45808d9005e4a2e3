#!/usr/bin/env python3
"""Repeats the first iterations of a run of dft and compares losses, gradients and weights; exit code 1 if they differ by
more than 1e-5, relative.

    cargo run --release --example first_iteration -- configs/speed/planar.toml first.safetensors
    python3 benchmarks/pytorch/agree.py first.safetensors [--variant eager|compile] [--threads 1] [--double]

The error of a tensor is |found − wanted| / |wanted|, Euclidean norms. Single weights are reported too, relative to the
largest of their tensor, but are not what decides: Adam's first steps are lr·sign(g), so where a gradient is nothing but the
rounding of f32, two correct programs may step to different sides. `--double` repeats the iteration in f64, and so shows how
far dft is from arithmetic without rounding. With RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, ranks share the batch over
gloo, and each compares.
"""

import argparse
import os
import sys

import torch

import networks
import settings
import targets
import tensors
from variants import trainer_class

MOST = 1e-5


class Recorded:
    """This rank's part of the noise of dft's updates, in their order."""

    def __init__(self, found, iterations, own_score_updates, kind, rank=0, size=1):
        names = []
        for iteration in range(iterations):
            names += [f"noise.{iteration}.score.{update}" for update in range(own_score_updates)]
            names.append(f"noise.{iteration}.sampler")
        parts = ("z", "eps", "sigma")
        own = lambda whole: whole.chunk(size)[rank].to(kind)
        self.draws = iter([tuple(own(found[f"{name}.{part}"]) for part in parts) for name in names])

    def draw(self):
        return next(self.draws)


def relative(difference, wanted, norm):
    """`norm` of the difference over that of what was wanted; 0 where both are 0."""
    difference = norm(difference.double())
    return (difference / norm(wanted.double())).item() if difference else 0.0


class Comparison:
    """Errors by what was compared: of whole tensors, and the largest of single numbers."""

    def __init__(self):
        self.errors, self.largest, self.count, self.apart = {}, {}, {}, {}

    def add(self, kind, name, found, wanted):
        difference = found.double() - wanted.double()
        error = relative(difference, wanted, torch.linalg.vector_norm)
        if error >= self.errors.get(kind, ("", -1.0))[1]:
            self.errors[kind] = (name, error)
        single = relative(difference, wanted, lambda x: x.abs().max())
        self.largest[kind] = max(single, self.largest.get(kind, 0.0))
        self.count[kind] = self.count.get(kind, 0) + wanted.numel()
        apart = (difference.abs() > MOST * wanted.double().abs().max()).sum().item()
        self.apart[kind] = self.apart.get(kind, 0) + apart

    def report(self):
        for kind, (name, error) in self.errors.items():
            single = f"{self.largest[kind]:.1e}, {self.apart[kind]} of {self.count[kind]} above {MOST:.0e}"
            print(f"{kind:17} {error:.1e} in {name}; single numbers {single}")
        return max(error for _, error in self.errors.values())


def repeat(path, variant, kind=torch.float32):
    """Compares what the twin makes of the file's noise with what dft made of it."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    found, metadata = tensors.read(path)
    config, iterations = settings.parse(metadata["config"]), int(metadata["iterations"])
    rows = (found["rows.x"], found["rows.y"]) if "rows.x" in found else None
    target = targets.load(config["target"], rows).to(kind)
    sampler, score = networks.build(config, target)
    # Strict: the names and shapes are dft's.
    sampler.load_state_dict(tensors.part(found, "before.sampler"))
    score.load_state_dict(tensors.part(found, "before.score"))
    own = config["train"]["score_updates"] - (config["train"]["schedule"] == "simultaneous")
    noise = Recorded(found, iterations, own, kind, rank, size)
    both = (sampler.to(kind), score.to(kind))
    trainer = trainer_class(variant)(config, both, target, noise, torch.device("cpu"), is_distributed=size > 1)
    comparison = Comparison()
    for iteration in range(iterations):
        pair = torch.stack(trainer.iteration())
        if size > 1:  # each rank has the mean over its own rows
            torch.distributed.all_reduce(pair)
        losses = zip(("score loss", "sampler loss"), pair / size, found[f"losses.{iteration}"])
        for what, ours, theirs in losses:
            comparison.add(what, f"iteration {iteration}", ours, theirs)
    for what, network, adam in (("sampler", sampler, trainer.sampler_adam), ("score", score, trainer.score_adam)):
        for name, parameter in network.named_parameters():
            mean = adam.state[parameter]["exp_avg"]
            comparison.add(f"{what} gradient", name, mean, found[f"gradient.{what}.{name}"])
            comparison.add(f"{what} weights", name, parameter.detach(), found[f"after.{what}.{name}"])
    for (name, _), average in zip(sampler.named_parameters(), trainer.average):
        comparison.add("averaged weights", name, average, found[f"after.average.{name}"])
    if size > 1:
        torch.distributed.destroy_process_group()
    return comparison


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--variant", default="eager", choices=["eager", "compile"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--double", action="store_true", help="repeat in f64")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    largest = repeat(options.file, options.variant, torch.float64 if options.double else torch.float32).report()
    print(f"{options.variant}{' in f64' if options.double else ''}: largest relative error {largest:.1e}, at most {MOST:.0e} is wanted")
    sys.exit(0 if largest <= MOST else 1)


if __name__ == "__main__":
    main()
