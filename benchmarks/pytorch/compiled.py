"""The loop with its updates compiled: each is one function from weights and noise to gradients, by function transforms, so
that forward passes, both vector-Jacobian products and the backward pass are one graph for torch.compile."""

import torch
from torch.func import functional_call, grad_and_value, vjp

from loop import Trainer, per_row


class CompiledTrainer(Trainer):
    """As Trainer; noise and Adam's fused steps stay outside the compiled functions."""

    def __init__(self, config, networks, target, noise, device, is_distributed=False, is_captured=False):
        if is_distributed:
            raise SystemExit("the compiled updates compute gradients that DistributedDataParallel does not see; use eager")
        super().__init__(config, networks, target, noise, device)
        # Constants to autograd, on the storage that Adam writes to.
        self.score_weights, self.sampler_weights = (
            {name: value.detach() for name, value in network.named_parameters()} for network in (self.score, self.sampler)
        )
        product = getattr(self.target, "score_and_product_functional", self.target.score_and_product)
        self.score_and_product = product
        self.score_gradients = torch.compile(self.score_gradients, fullgraph=True, dynamic=False)
        self.sampler_gradients = torch.compile(self.sampler_gradients, fullgraph=True, dynamic=False)
        self.both_gradients = torch.compile(self.both_gradients, fullgraph=True, dynamic=False)

    def score_at(self, weights, x, sigma):
        return functional_call(self.score, weights, (x, sigma))

    def sampler_at(self, z):
        return lambda weights: functional_call(self.sampler, weights, (z,))

    def score_gradients(self, score_weights, sampler_weights, z, eps, sigma):
        x = self.perturb(self.sampler_at(z)(sampler_weights), eps, sigma)
        loss = lambda weights: self.field.score_loss(self.score_at(weights, x, sigma), eps, sigma)
        return grad_and_value(loss)(score_weights)

    def sampler_gradients(self, score_weights, sampler_weights, z, eps, sigma):
        x0, pull_back = vjp(self.sampler_at(z), sampler_weights)
        x = self.perturb(x0, eps, sigma)
        noise_score = eps / per_row(sigma, eps)
        score, product = vjp(lambda x: self.score_at(score_weights, x, sigma), x)
        (of_score,) = product(score + noise_score)
        gradient, loss = self.field_at(x, of_score, score, noise_score, sigma)
        return pull_back(gradient)[0], loss

    def both_gradients(self, score_weights, sampler_weights, z, eps, sigma):
        x0, pull_back = vjp(self.sampler_at(z), sampler_weights)
        x = self.perturb(x0, eps, sigma)
        noise_score = eps / per_row(sigma, eps)

        def loss_and_score(weights, x):
            score = self.score_at(weights, x, sigma)
            return self.field.score_loss(score, eps, sigma), score

        value = grad_and_value(loss_and_score, argnums=(0, 1), has_aux=True)(score_weights, x)
        (score_gradients, of_x), (score_loss, score) = value
        factor = self.field.row_weights(sigma) * sigma.square() * (2.0 / len(x))
        gradient, sampler_loss = self.field_at(x, of_x / per_row(factor, x), score, noise_score, sigma)
        return score_gradients, score_loss, pull_back(gradient)[0], sampler_loss

    def field_at(self, x, of_score, score, noise_score, sigma):
        direction = lambda target_score: 2.0 * (target_score + noise_score)
        target_score, of_target = self.score_and_product(x, sigma, direction)
        return self.field.combine(of_target, of_score, (score, target_score), noise_score, sigma)

    def step(self, network, adam, gradients):
        for name, parameter in network.named_parameters():
            parameter.grad = gradients[name]
        adam.step()

    @torch.no_grad()
    def score_update(self):
        gradients, loss = self.score_gradients(self.score_weights, self.sampler_weights, *self.noise.draw())
        self.step(self.score, self.score_adam, gradients)
        return loss

    @torch.no_grad()
    def sampler_update(self):
        gradients, loss = self.sampler_gradients(self.score_weights, self.sampler_weights, *self.noise.draw())
        self.step(self.sampler, self.sampler_adam, gradients)
        return loss

    @torch.no_grad()
    def simultaneous_update(self):
        found = self.both_gradients(self.score_weights, self.sampler_weights, *self.noise.draw())
        score_gradients, score_loss, sampler_gradients, sampler_loss = found
        self.step(self.score, self.score_adam, score_gradients)
        self.step(self.sampler, self.sampler_adam, sampler_gradients)
        return score_loss, sampler_loss
