"""The targets of src/target in PyTorch: s_q(x, sigma), and with it H·v for a direction v that depends on the score."""

import csv
import math

import torch
from torch import nn

import settings
from networks import UnetEnergy


class Mog2(nn.Module):
    """Two Gaussians of covariance I/2 at (−2, 2) and (2, −2), in closed form, components before rows as in src/target.

    With responsibilities r_k and component scores s_k = 2 (m_k − x), s = Σ r_k s_k and
    H = Σ r_k (s_k − s)(s_k − s)ᵀ − 2 I.
    """

    shape = (2,)

    def __init__(self, weights=()):
        super().__init__()
        means, weights = torch.tensor([[-2.0, 2.0], [2.0, -2.0]]), torch.tensor(weights or [0.5, 0.5])
        self.register_buffer("pull", 2.0 * means)  # s_k = pull_k − 2 x
        # log w_k − |m_k|²; with 2 m_k·x this is log r_k but for what all k share. Both means are of one length.
        self.register_buffer("offsets", weights.log()[:, None])

    def score_and_product(self, x, sigma, direction):
        shares = torch.addmm(self.offsets, self.pull, x.T).softmax(0)  # [M, B]
        score = shares.T @ self.pull - 2.0 * x
        v = direction(score)
        # s_k·v but for what all k share, and less its mean over r_k: these sum to 0, so that s drops out.
        along = self.pull @ v.T
        coefficients = shares * (along - (shares * along).sum(0))
        return score, coefficients.T @ self.pull - 2.0 * v


class Logistic(nn.Module):
    """The posterior of (w, a), a = log alpha, over all rows: closed forms.

    Rows keep their label in their sign, z = (1 − 2y) x, so the log-likelihood is −Σ log(1 + exp(z·w)).
    """

    def __init__(self, x, y, shape, rate):
        super().__init__()
        self.register_buffer("z", x * (1.0 - 2.0 * y)[:, None])
        self.d = x.shape[1]
        self.shape = (self.d + 1,)
        self.exponent, self.rate = self.d / 2 + shape, rate

    def score_and_product(self, x, sigma, direction):
        w, alpha = x[:, : self.d], x[:, self.d :].exp()
        rate = w.square().sum(1, keepdim=True) * 0.5 + self.rate
        sigmoid = (w @ self.z.T).sigmoid()  # [B, N]
        score = torch.cat([-(w * alpha) - sigmoid @ self.z, self.exponent - alpha * rate], 1)
        v = direction(score)
        of_w, of_a = v[:, : self.d], v[:, self.d :]
        weights = (of_w @ self.z.T) * sigmoid * (1.0 - sigmoid)
        along = (w * of_w).sum(1, keepdim=True)
        product = torch.cat([-(of_w + w * of_a) * alpha - weights @ self.z, -(along + rate * of_a) * alpha], 1)
        return score, product


class TemperedEnergy(nn.Module):
    """(sigma0/sigma)² times the score of exp(−E), and the product by a second differentiation."""

    def __init__(self, path):
        super().__init__()
        self.energy = UnetEnergy(path)
        self.shape = self.energy.shape

    def factor(self, sigma):
        return (self.energy.sigma0 / sigma).square()[:, None, None, None]

    def score_and_product(self, x, sigma, direction):
        factor = self.factor(sigma)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
            score = -gradient.detach() * factor
            v = direction(score)
            (product,) = torch.autograd.grad(gradient, x, -v)
        return score, product * factor

    def score_and_product_functional(self, x, sigma, direction):
        """The same by function transforms, which torch.compile follows twice."""
        factor = self.factor(sigma)
        gradient, pull = torch.func.vjp(torch.func.grad(lambda x: self.energy(x).sum()), x)
        score = -gradient * factor
        (product,) = pull(-direction(score))
        return score, product * factor


def load(section, rows=None):
    """The target of a configuration's `[target]`; `rows` (x, y) in place of those of a regression's file."""
    if section["kind"] == "mog2":
        return Mog2(section.get("weights", ()))
    if section["kind"] == "energy" and section.get("tempered", False):
        return TemperedEnergy(section["file"])
    if section["kind"] == "logistic":
        plain = section["scaling"] == "none" and not section["whiten"] and not section["control_variate"]
        if not plain or "batch" in section:
            raise SystemExit('the twin wants scaling = "none", whiten = false, control_variate = false and no batch')
        x, y = rows or read_rows(section)
        return Logistic(x, y, section.get("prior_shape", 1.0), section.get("prior_rate", 0.01))
    raise SystemExit(f"the twins know the targets mog2, logistic and a tempered energy, not {section['kind']}")


def read_rows(section):
    """As many rows as dft trains on, with a column of ones, and their labels: the last of the file, where dft takes
    random ones, which is the same work."""
    with open(settings.ROOT / section["data"], encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    table = torch.tensor([[float(cell) for cell in line] for line in lines])
    label = header.index(section["label"])
    y = table[:, label]
    x = torch.cat([table[:, :label], table[:, label + 1 :], torch.ones(len(table), 1)], 1)
    held_out = math.floor(section.get("test_fraction", 0.2) * len(table))
    return x[held_out:].contiguous(), y[held_out:].contiguous()
