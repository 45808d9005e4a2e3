"""The configurations of dft: one source of settings for both sides. Only what the twins support is let through."""

import json
import math
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]

# dft's defaults (src/config) of what the files in configs/speed leave out.
DEFAULTS = {
    "run": {"seed": 0},
    "sampler": {"width": 128, "depth": 3, "initial_scale": 1.0, "initial_offset": 0.0, "start": "random"},
    "score": {"width": 128, "depth": 3, "start": "random"},
    "method": {"kind": "dft", "field_power": 0.0, "score_weight": "uniform", "sigma_data": 0.33},
    "train": {
        "schedule": "alternating", "iterations": 2000, "batch": 480, "warmup_updates": 300, "sampler_lr": 2e-4, "score_lr": 2e-3,
        "sampler_betas": [0.0, 0.99], "score_betas": [0.0, 0.99], "cosine_from": 0.6, "final_lr_fraction": 0.01,
        "ema_half_life_samples": 0.0,
    },
}  # fmt: skip

# Settings that the twins know no other value of.
ONLY = {
    "sampler": {"initial_gain": 1.0},
    "score": {"base": "gaussian", "tail_scaling": False, "frequencies": 0, "linear_skip": False, "noise_scaling": False},
    "method": {
        "kind": "dft", "variance": "plain", "phases": [], "smoothing": 0, "anneal_until": 0.0, "anneal_to": 1.0,
    },
    "train": {"warmup_updates": 0, "sampler_clip_norm": 0.0, "score_clip_norm": 0.0, "clip_factor": 0.0},
}  # fmt: skip


def load(path, overrides=()):
    """The configuration at `path` with defaults, and `section.key=value` overrides as dft's --set takes them."""
    return parse(pathlib.Path(path).read_text(encoding="utf-8"), overrides)


def parse(text, overrides=()):
    """As `load`, from text."""
    given = tomllib.loads(text)
    for assignment in overrides:
        key, value = assignment.split("=", 1)
        section, name = key.split(".")
        try:
            given.setdefault(section, {})[name] = json.loads(value)
        except json.JSONDecodeError:
            given[section][name] = value  # a word
    config = {name: {**DEFAULTS.get(name, {}), **section} for name, section in given.items()}
    updates = {"alternating": 5, "simultaneous": 1}[config["train"]["schedule"]]
    config["train"].setdefault("score_updates", updates)
    check(config)
    return config


def check(config):
    """Ends the program where the twins would train something else than the configuration says."""
    for section, wanted in ONLY.items():
        for key, value in wanted.items():
            found = config[section].get(key, value)
            if found != value:
                raise SystemExit(f"the twins want {section}.{key} = {value!r}, found {found!r}")
    if "warm_start" in config:
        raise SystemExit("the twins have no warm start; leave [warm_start] out")


def band(config):
    """The lowest and the highest noise level."""
    sigma = config["method"]["sigma"]
    low, high = sigma if isinstance(sigma, list) else (sigma, sigma)
    return float(low), float(high)


def rate_factor(config, iteration):
    """Factor on both step sizes: 1 until `cosine_from`, then along half a cosine to `final_lr_fraction`."""
    train = config["train"]
    fraction, start, last = iteration / train["iterations"], train["cosine_from"], train["final_lr_fraction"]
    if fraction <= start or start >= 1.0:
        return 1.0
    t = min((fraction - start) / (1.0 - start), 1.0)
    return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * t))


def average_weight(config, iteration):
    """Weight of the latest sampler in the averaged one after `iteration` iterations, from 1."""
    train = config["train"]
    half_life = min(train["ema_half_life_samples"], 0.1 * iteration * train["batch"])
    return 1.0 - 0.5 ** (train["batch"] / half_life) if half_life > 0 else 1.0
