"""The networks of src/model in PyTorch; parameters have the same names and shapes there and here."""

import json
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

import settings
import tensors

BOTTLENECK = 128


class Mlp(nn.Sequential):
    """`depth` hidden SiLU layers of `width` units; the last layer starts at zero."""

    def __init__(self, inputs, outputs, width, depth):
        layers = OrderedDict()
        for layer in range(depth):
            layers[str(layer)] = nn.Linear(inputs if layer == 0 else width, width)
            layers[f"silu{layer}"] = nn.SiLU()
        layers["last"] = nn.Linear(width, outputs)
        super().__init__(layers)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)


class NoiseEmbedding(nn.Module):
    """Biases for three places of a U-Net from Fourier features of log sigma, `[B] -> [B, 3w + 128]`."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("frequencies", torch.tensor([0.5, 1.0, 2.0, 4.0]), persistent=False)
        self.hidden = nn.Linear(8, 64)
        self.last = nn.Linear(64, 3 * width + BOTTLENECK)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, log_sigma):
        angles = log_sigma[:, None] * self.frequencies
        return self.last(F.silu(self.hidden(torch.cat([angles.sin(), angles.cos()], 1))))


class UNet(nn.Module):
    """Two halvings, a fully connected bottleneck, two doublings, with skip connections; SiLU, no normalisation."""

    def __init__(self, shape, width, is_conditional):
        super().__init__()
        channels, height, breadth = shape
        flat = 2 * width * (height // 4) * (breadth // 4)
        self.enter = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.squeeze = nn.Linear(flat, BOTTLENECK)
        self.middle = nn.Linear(BOTTLENECK, BOTTLENECK)
        self.expand = nn.Linear(BOTTLENECK, flat)
        self.inner = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.merge = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)
        self.noise = NoiseEmbedding(width) if is_conditional else None
        self.lengths = [width, 2 * width, BOTTLENECK]

    def unet(self, x, log_sigma=None):
        """`x` `[B, C, H, W]`, and of a conditional network log sigma `[B]`; returns the shape of `x`."""
        if self.noise is None:
            at_half = at_quarter = at_code = 0.0
        else:
            at_half, at_quarter, at_code = self.noise(log_sigma).split(self.lengths, 1)
            at_half, at_quarter = at_half[:, :, None, None], at_quarter[:, :, None, None]
        half = F.silu(self.enter(x) + at_half)
        half = half + F.silu(self.outer(half))
        quarter = F.silu(self.down(half) + at_quarter)
        code = F.silu(self.squeeze(quarter.flatten(1)) + at_code)
        code = F.silu(self.middle(code))
        quarter = F.silu(quarter + self.expand(code).view_as(quarter))
        quarter = F.silu(self.inner(quarter))
        merged = F.silu(self.up(quarter) + half)
        merged = merged + F.silu(self.merge(merged))
        return self.leave(merged)


class MlpSampler(nn.Module):
    """x0 = offset + scale·(z·exp(gate(z)) + shift(z))."""

    def __init__(self, section, dimension):
        super().__init__()
        self.latent_shape = (section["latent"],)
        self.scale, self.offset, self.dimension = section["initial_scale"], section["initial_offset"], dimension
        self.mlp = Mlp(section["latent"], 2 * dimension, section["width"], section["depth"])

    def forward(self, z):
        shift, gate = self.mlp(z).chunk(2, 1)
        return torch.addcmul(shift, z[:, : self.dimension], gate.exp()) * self.scale + self.offset


class UnetSampler(UNet):
    """x0 = f(offset + scale·z)."""

    def __init__(self, section, shape):
        super().__init__(shape, section["width"], False)
        self.latent_shape = tuple(shape)
        self.scale, self.offset = section["initial_scale"], section["initial_offset"]

    def forward(self, z):
        return self.unet(z * self.scale + self.offset)


class MlpScore(nn.Module):
    """s = (net(asinh u, asinh(5u)/3, log sigma) − u)/scale with u = (x − offset)/scale."""

    def __init__(self, section, start, dimension):
        super().__init__()
        self.scale, self.offset = start["initial_scale"], start["initial_offset"]
        self.mlp = Mlp(2 * dimension + 1, dimension, section["width"], section["depth"])

    def forward(self, x, sigma):
        u = (x - self.offset) / self.scale
        inputs = torch.cat([u.asinh(), (u * 5.0).asinh() / 3.0, sigma.log()[:, None]], 1)
        return (self.mlp(inputs) - u) / self.scale


class UnetScore(UNet):
    """s = (D(x, log sigma) − x)/sigma², D a copy of the energy's denoiser at the start."""

    def __init__(self, section, shape):
        super().__init__(shape, section["width"], True)

    def forward(self, x, sigma):
        return (self.unet(x, sigma.log()) - x) / sigma.square()[:, None, None, None]


class UnetEnergy(UNet):
    """E(x) = |x − f(x)|²/(2 sigma0²), fixed weights."""

    def __init__(self, path):
        weights, metadata = tensors.read(settings.ROOT / path)
        spec = json.loads(metadata["energy"])
        if spec["kind"] != "unet":
            raise SystemExit(f"{path} is an energy of kind {spec['kind']}; the twin wants a unet")
        super().__init__(spec["shape"], spec["width"], False)
        self.shape, self.width, self.sigma0 = tuple(spec["shape"]), spec["width"], spec["sigma0"]
        self.load_state_dict(weights)
        self.requires_grad_(False)

    def forward(self, x):
        return (x - self.unet(x)).flatten(1).square().sum(1) * (0.5 / self.sigma0**2)


def build(config, target):
    """Sampler and score network of a configuration, at their first weights."""
    sampler_section, score_section = config["sampler"], config["score"]
    kinds = sampler_section["kind"], score_section["kind"]
    if kinds == ("mlp", "mlp"):
        (dimension,) = target.shape
        return MlpSampler(sampler_section, dimension), MlpScore(score_section, sampler_section, dimension)
    starts = sampler_section["start"], score_section["start"]
    if kinds != ("unet", "unet") or starts != ("energy", "energy"):
        raise SystemExit(f"the twins want two mlp, or two unet that start as the energy, found {kinds}, {starts}")
    sampler, score = UnetSampler(sampler_section, target.shape), UnetScore(score_section, target.shape)
    weights = target.energy.state_dict()
    sampler.load_state_dict(weights)
    missing = score.load_state_dict(weights, strict=False).missing_keys
    if not all(name.startswith("noise.") for name in missing):
        raise SystemExit(f"the score network lacks {missing}")
    return sampler, score
