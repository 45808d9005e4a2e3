#!/usr/bin/env python3
"""Times the PyTorch twin of a configuration of dft and prints one line of JSON.

    python3 benchmarks/pytorch/timing.py configs/speed/planar.toml --variant eager --threads 1 --iterations 200

With RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, as torchrun sets them, ranks share the global batch by
DistributedDataParallel: over gloo on CPUs, over NCCL on GPUs; rank 0 prints. `agree.py` shows first that the twin does what
dft does.

- iterations_per_second: of `--iterations` iterations after `--warmup`, losses left on the device; dft reads them and the
  gradients' norms after each update, and records them.
- samples_per_second: `--samples` samples in batches of `--sample-batch`, latents included, kept in one tensor.
- peak_mebibytes: ru_maxrss of this process, and of the GPU's memory what PyTorch allocated at most.
- seconds_to_first_iteration: from the start of the process to the end of the first iteration, imports included.
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import time

import torch

import networks
import settings
import targets
from loop import Noise
from variants import trainer_class


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as for dft")
    parser.add_argument("--variant", default="eager", choices=["eager", "compile", "cudagraph"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1_000_000, help="0: no samples are drawn")
    parser.add_argument("--sample-batch", type=int, default=8192)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return parser.parse_args()


def seconds_since_start():
    """Seconds since the system started this process, to a hundredth; Linux."""
    fields = pathlib.Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def finish(device):
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def join(device_name):
    """Rank, world size and device of this process."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", rank))
    device = torch.device("cuda", local % torch.cuda.device_count()) if device_name == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
    return rank, size, device


def iteration_rate(trainer, options, device):
    """Iterations a second after the warm-up."""
    for _ in range(options.warmup):
        trainer.iteration()
    finish(device)
    started = time.perf_counter()
    for _ in range(options.iterations):
        losses = trainer.iteration()
    finish(device)
    seconds = time.perf_counter() - started
    if not all(loss.isfinite() for loss in losses):
        raise SystemExit(f"the losses after {trainer.done} iterations are {losses}")
    return options.iterations / seconds


def sample_rate(sampler, target, options, device):
    """Samples a second; the first batch, which a compiler needs, is drawn twice and counted once."""
    draw = torch.compile(sampler, dynamic=False) if options.variant == "compile" else sampler
    with torch.inference_mode():
        samples = torch.empty((options.samples, *target.shape), device=device)
        rows = min(options.sample_batch, options.samples)
        draw(torch.randn((rows, *sampler.latent_shape), device=device))
        finish(device)
        started = time.perf_counter()
        for first in range(0, options.samples, rows):
            # The last batch is drawn whole, so that its shape is none of its own.
            batch = draw(torch.randn((rows, *sampler.latent_shape), device=device))
            part = samples[first : first + rows]
            part.copy_(batch[: len(part)])
        finish(device)
    return options.samples / (time.perf_counter() - started)


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    rank, size, device = join(options.device)
    config = settings.load(options.config, options.set)
    # The initial weights alike, noise for each rank its own.
    torch.manual_seed(config["run"]["seed"])
    target = targets.load(config["target"])
    sampler, score = networks.build(config, target)
    torch.manual_seed(config["run"]["seed"] * size + rank + 1)
    noise = Noise(config, sampler, target, device, rank, size)
    trainer = trainer_class(options.variant)(config, (sampler, score), target, noise, device, is_distributed=size > 1)
    trainer.iteration()
    finish(device)
    result = {
        "config": options.config, "variant": options.variant, "threads": options.threads, "ranks": size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "torch": torch.__version__,
        "seconds_to_first_iteration": seconds_since_start(),
    }  # fmt: skip
    if options.iterations > 0:
        result["iterations_per_second"] = iteration_rate(trainer, options, device)
    # Of training, as it is of dft train; samples are another program there.
    result["peak_mebibytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        result["peak_device_mebibytes"] = torch.cuda.max_memory_allocated(device) / 2**20
    if options.samples > 0 and rank == 0:
        result["samples_per_second"] = sample_rate(sampler, target, options, device)
    if rank == 0:
        print(json.dumps(result))
    if size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
