"""The loop as captured CUDA graphs: an update, its noise and its Adam step with it, is one launch.

NOT YET RUN: written on machines without a GPU. `agree.py` does not cover it, for it draws its own noise; the updates
it captures are those of loop.py, which it does cover.
"""

import torch

from loop import Trainer

WARM_UP = 3  # before a capture, as PyTorch's notes on CUDA graphs ask: libraries and Adam's state are set up outside


class GraphTrainer(Trainer):
    """As Trainer, on one GPU. The first iteration is made of ordinary updates, and so is more than one iteration."""

    def __init__(self, config, networks, target, noise, device, is_distributed=False, is_captured=True):
        if device.type != "cuda" or is_distributed:
            raise SystemExit("cudagraph wants --device cuda and one process")
        super().__init__(config, networks, target, noise, device, is_captured=True)
        for adam, rate in zip((self.score_adam, self.sampler_adam), self.rates):
            self.set_rate(adam, rate)
        updates = ["score_update"] * (self.own_score_updates > 0)
        updates.append("simultaneous_update" if self.is_simultaneous else "sampler_update")
        for name in updates:
            setattr(self, name, self.capture(getattr(self, name)))

    def set_rate(self, adam, rate):
        # In place: the graph reads it from where it was at the capture.
        adam.param_groups[0]["lr"].fill_(rate)

    def capture(self, update):
        """`update` as a replay that returns the same tensors every time, with new values."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                update()
        torch.cuda.current_stream().wait_stream(stream)
        # Gradients of the capture come from the graph's own pool, and are written there by each replay.
        for adam in (self.score_adam, self.sampler_adam):
            adam.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = update()

        def replay():
            graph.replay()
            return losses

        return replay
