"""The training loop of src/train in PyTorch, eager: score and sampler updates in turn, or both from one batch.

With x = x0 + sigma·eps, n = eps/sigma, and the score s_phi of the sampler's and s_q of the target's distribution, the
sampler descends the field 2 J_q^T (s_q + n) − 2 J_phi^T (s_phi + n): two vector-Jacobian products, as in src/method.
"""

import math

import torch
from torch.nn.parallel import DistributedDataParallel

import settings


class Noise:
    """Latents, noise, and noise levels log-uniform in the band, one in each stratum of the global batch."""

    def __init__(self, config, sampler, target, device, rank=0, world_size=1):
        batch = config["train"]["batch"]
        if batch % world_size:
            raise SystemExit(f"train.batch = {batch} does not divide over {world_size} ranks")
        rows = batch // world_size
        low, high = settings.band(config)
        self.device = device
        self.shapes = (rows, *sampler.latent_shape), (rows, *target.shape)
        self.strata = torch.arange(rank * rows, (rank + 1) * rows, device=device, dtype=torch.float32)
        self.step, self.low = math.log(high / low) / batch, math.log(low)

    def draw(self):
        """z, eps and sigma `[B]` of this rank."""
        z, eps = (torch.randn(shape, device=self.device) for shape in self.shapes)
        sigma = (self.strata + torch.rand_like(self.strata)).mul_(self.step).add_(self.low).exp_()
        return z, eps, sigma


def per_row(value, x):
    """`[B]` as it broadcasts over `x` `[B, …]`."""
    return value.view(-1, *[1] * (x.dim() - 1))


class Field:
    """The formulas that both networks' updates are made of, for one `[method]`."""

    def __init__(self, method):
        self.power = method["field_power"]
        self.data = method["sigma_data"] ** 2 if method["score_weight"] == "edm" else None

    def row_weights(self, sigma):
        """Weights `[B]` of noise levels in the score network's loss."""
        return torch.ones_like(sigma) if self.data is None else (sigma.square() + self.data) / self.data

    def score_loss(self, score, eps, sigma):
        """Mean over the rows of weight·|sigma·s_phi + eps|²."""
        rows = torch.addcmul(eps, score, per_row(sigma, score)).square().flatten(1).sum(1)
        return (rows if self.data is None else rows * self.row_weights(sigma)).mean()

    def combine(self, of_target, of_score, scores, noise_score, sigma):
        """Gradient of the sampler's loss in each x0, divided by the rows, and the loss; `of_target` and `of_score` are
        the products with 2 (s_q + n) and with s_phi + n."""
        score, target_score = scores
        field = torch.sub(of_target, of_score, alpha=2.0)
        loss = ((target_score - score) * (score + target_score + 2.0 * noise_score)).flatten(1).sum(1)
        if self.power:
            weight = sigma.pow(self.power)
            field, loss = field * per_row(weight, field), loss * weight
        return field / len(field), loss.mean()


class Trainer:
    """Two networks, two optimisers, the averaged sampler."""

    def __init__(self, config, networks, target, noise, device, is_distributed=False, is_captured=False):
        self.config, self.noise, self.target = config, noise, target.to(device)
        self.sampler, self.score = (network.to(device) for network in networks)
        self.field = Field(config["method"])
        # Gradients of these are averaged over ranks as they are computed.
        self.tracked_sampler, self.tracked_score = self.sampler, self.score
        if is_distributed:
            wrap = lambda network: DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
            self.tracked_sampler, self.tracked_score = wrap(self.sampler), wrap(self.score)
        train = config["train"]
        self.rates = train["score_lr"], train["sampler_lr"]

        def adam(network, rate, betas):
            # A captured step reads its rate from the device.
            rate = torch.tensor(rate, device=device) if is_captured else rate
            return torch.optim.Adam(network.parameters(), lr=rate, betas=tuple(betas), fused=True, capturable=is_captured)

        self.score_adam = adam(self.score, train["score_lr"], train["score_betas"])
        self.sampler_adam = adam(self.sampler, train["sampler_lr"], train["sampler_betas"])
        self.latest = list(self.sampler.parameters())
        self.average = [p.detach().clone() for p in self.latest]
        self.is_simultaneous = train["schedule"] == "simultaneous"
        self.own_score_updates = train["score_updates"] - self.is_simultaneous
        self.done = 0

    def iteration(self):
        """One iteration of the plan; returns the last score loss and the sampler's loss, on the device."""
        factor = settings.rate_factor(self.config, self.done)
        for adam, rate in zip((self.score_adam, self.sampler_adam), self.rates):
            self.set_rate(adam, rate * factor)
        for _ in range(self.own_score_updates):
            score_loss = self.score_update()
        if self.is_simultaneous:
            score_loss, sampler_loss = self.simultaneous_update()
        else:
            sampler_loss = self.sampler_update()
        self.done += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.latest, settings.average_weight(self.config, self.done))
        return score_loss, sampler_loss

    def set_rate(self, adam, rate):
        adam.param_groups[0]["lr"] = rate

    def perturb(self, x0, eps, sigma):
        return torch.addcmul(x0, per_row(sigma, eps), eps)

    def score_update(self):
        """One Adam update of the score network on fresh samples."""
        z, eps, sigma = self.noise.draw()
        with torch.no_grad():
            x = self.perturb(self.sampler(z), eps, sigma)
        loss = self.field.score_loss(self.tracked_score(x, sigma), eps, sigma)
        self.score_adam.zero_grad(set_to_none=True)
        loss.backward()
        self.score_adam.step()
        return loss.detach()

    def sampler_update(self):
        """One Adam update of the sampler down the field, the score network fixed."""
        z, eps, sigma = self.noise.draw()
        x0 = self.tracked_sampler(z)
        x = self.perturb(x0.detach(), eps, sigma).requires_grad_()
        noise_score = eps / per_row(sigma, eps)
        score = self.score(x, sigma)
        # With respect to x alone: no gradient of a weight is computed.
        (of_score,) = torch.autograd.grad(score, x, score.detach() + noise_score)
        return self.descend(x0, x.detach(), of_score, score.detach(), noise_score, sigma)

    def simultaneous_update(self):
        """Both updates from the same samples: the backward pass of the score network's loss has the product as well."""
        z, eps, sigma = self.noise.draw()
        x0 = self.tracked_sampler(z)
        x = self.perturb(x0.detach(), eps, sigma).requires_grad_()
        noise_score = eps / per_row(sigma, eps)
        score = self.tracked_score(x, sigma)
        score_loss = self.field.score_loss(score, eps, sigma)
        self.score_adam.zero_grad(set_to_none=True)
        score_loss.backward()
        # The loss depends on s_phi through weight·sigma²·|s_phi + n|²/B.
        factor = self.field.row_weights(sigma) * sigma.square() * (2.0 / len(x))
        of_score = x.grad / per_row(factor, x)
        sampler_loss = self.descend(x0, x.detach(), of_score, score.detach(), noise_score, sigma)
        self.score_adam.step()
        return score_loss.detach(), sampler_loss

    def descend(self, x0, x, of_score, score, noise_score, sigma):
        """Pulls the field at x0 back through the sampler and updates it."""
        target_score, of_target = self.target.score_and_product(x, sigma, lambda s: 2.0 * (s + noise_score))
        gradient, loss = self.field.combine(of_target, of_score, (score, target_score), noise_score, sigma)
        self.sampler_adam.zero_grad(set_to_none=True)
        x0.backward(gradient)
        self.sampler_adam.step()
        return loss
