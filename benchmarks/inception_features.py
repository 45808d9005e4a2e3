#!/usr/bin/env python3
"""The Inception features of the published FID, or any convolutional features, as a TorchScript file for evaluate.features.

    python benchmarks/inception_features.py inception WEIGHTS.pth -o inception.pt
    python benchmarks/inception_features.py module my_network.py:make weights.pth -o mine.pt --size 64
    python benchmarks/inception_features.py check inception.pt WEIGHTS.pth      # against the package's own forward
    python benchmarks/inception_features.py tiny -o tests/support/features.pt   # what the tests use

The weights are a file of yours: nothing is fetched. docs/inception.md says where they come from, what each protocol
does to an image and which numbers compare with which. Needs PyTorch (launch/setup.sh --full-torch), and for the first
and the third line torch-fidelity, pytorch-fid or torchmetrics, whose networks are imported and not copied.
"""

import argparse
import hashlib
import importlib.util
import io
import zipfile

import torch

# The published file ends in the first digits of its own SHA-256, as torch.hub names files.
PUBLISHED = "6726825d"
# Order of the published network up to its last maps; None is a 3 x 3 max pooling of stride 2.
STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", None, "Conv2d_3b_1x1", "Conv2d_4a_3x3", None]
MIXED = ["Mixed_" + name for name in "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split()]


def interpolation(size, out, is_tensorflow):
    """Bilinear interpolation of one axis as a matrix [out, size], f32.

    Pixel i of the result looks at i * size / out (TensorFlow 1), or at (i + 1/2) * size / out - 1/2 (PyTorch with
    align_corners=False), and takes the two pixels around it; beyond the edge the edge goes on.
    """
    at = torch.arange(out, dtype=torch.float64)
    at = at * size / out if is_tensorflow else ((at + 0.5) * size / out - 0.5).clamp(min=0)
    low = at.long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    matrix = torch.zeros(out, size, dtype=torch.float64)
    rows = torch.arange(out)
    matrix[rows, low] += 1 - (at - low)
    matrix[rows, high] += at - low
    return matrix.float()


class Features(torch.nn.Module):
    """Images [B, C, H, W] in [0, 1] of one shape to features [B, F]: the mean of the trunk's last maps.

    `trunk` maps [B, 3, S, S] to maps [B, F, h, w]. The protocols differ in the grid of the resizing and in the range
    that the trunk sees: `torch-fidelity` rounds to 256 levels and takes (level - 128) / 128, `pytorch-fid` takes
    2 x - 1; `torchmetrics` has the grid of the latter and the range of the former.
    """

    def __init__(self, trunk, shape, size, protocol):
        super().__init__()
        self.channels, self.height, self.width = shape
        if self.channels not in (1, 3):
            raise SystemExit(f"images of 1 or 3 channels are wanted, and --shape has {self.channels}")
        self.has_levels = protocol != "pytorch-fid"
        is_tensorflow = protocol == "torch-fidelity"
        # As matrices they go wherever the module goes, to a GPU too; indices made while tracing would stay.
        self.register_buffer("rows", interpolation(self.height, size, is_tensorflow))
        self.register_buffer("columns", interpolation(self.width, size, is_tensorflow).t().contiguous())
        with torch.no_grad():
            # Traced, because the packages' own code is not TorchScript; three images, so that no size is one by chance.
            self.trunk = torch.jit.trace(trunk.eval().requires_grad_(False), torch.rand(3, 3, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4 or x.size(1) != self.channels or x.size(2) != self.height or x.size(3) != self.width:
            raise RuntimeError(
                f"these features were made for images [{self.channels}, {self.height}, {self.width}], got {x.size()}; "
                "write others with --shape"
            )
        x = x.clamp(0.0, 1.0)
        if self.has_levels:
            x = (torch.round(x * 255.0) - 128.0) / 128.0
        else:
            x = 2.0 * x - 1.0
        x = torch.matmul(torch.matmul(self.rows, x), self.columns)
        # A grey image has its value in each of red, green and blue.
        maps = self.trunk(x.expand(-1, 3, -1, -1).contiguous())
        return maps.mean(dim=[2, 3])


def read_weights(file, is_published):
    """A state_dict; pickled code is not run."""
    with open(file, "rb") as opened:
        found = hashlib.sha256(opened.read()).hexdigest()
    if is_published and not found.startswith(PUBLISHED):
        raise SystemExit(
            f"{file} should be the published FID weights, SHA-256 {PUBLISHED}..., and has {found[:8]}...; its distances "
            "would compare with nothing published; to take it all the same: --any-weights"
        )
    return torch.load(file, map_location="cpu", weights_only=True)


def as_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def inception_network(package, state):
    """The whole network of a public package, with these weights."""
    if package == "torch-fidelity":
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # It downloads weights unless it is given a file.
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=as_file(state)).eval()
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: state
    return inception.fid_inception_v3().eval()


def inception_trunk(network):
    pool = torch.nn.MaxPool2d(kernel_size=3, stride=2)
    return torch.nn.Sequential(*(pool if name is None else getattr(network, name) for name in STEM + MIXED))


def module_from(place, file):
    """The module that FILE.py:FUNCTION makes, with its weights if a file is given."""
    source, _, function = place.rpartition(":")
    if not source:
        raise SystemExit(f"FILE.py:FUNCTION is wanted, found {place}")
    spec = importlib.util.spec_from_file_location("network", source)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    trunk = getattr(loaded, function)()
    if file:
        trunk.load_state_dict(read_weights(file, is_published=False))
    return trunk


def tiny_trunk():
    """Twelve features of 3 x 16 x 16, with random weights of a fixed seed: what the tests compute again."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 12, 5, stride=3), torch.nn.Tanh())


def save(module, file):
    """Writes the module, tries what was written, and keeps this script's own path out of it."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(file, "w") as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry, whole.read(entry))
    written = torch.jit.load(file)
    x = torch.rand(5, module.channels, module.height, module.width)
    with torch.no_grad():
        wanted = module(x)
        for rows in (5, 1):
            gap = (written(x[:rows]) - wanted[:rows]).abs().max().item()
            if not gap <= 1e-4 * wanted.abs().max().item():
                raise SystemExit(f"{file} gives other features than the module, by {gap:.2g}, for {rows} images")
    print(f"{file}: {list(x.shape[1:])} to {wanted.shape[1]} features; evaluate.samples = {wanted.shape[1] + 1} or more")


def package_features(protocol, state, levels):
    """Features [B, 2048] as the package itself computes them for u8 images [B, 3, H, W], from these weights."""
    if protocol == "torch-fidelity":
        return inception_network("torch-fidelity", state)(levels)[0]
    if protocol == "torchmetrics":
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3("inception", ["2048"], as_file(state))(levels)
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: state
    return inception.InceptionV3().eval()(levels / 255.0)[0].flatten(1)


def check(file, protocol, state, shape):
    """Largest difference of the file's features to the package's own, on images with 256 levels."""
    levels = torch.randint(0, 256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = package_features(protocol, state, levels.expand(-1, 3, -1, -1))
        found = torch.jit.load(file)(levels / 255.0)
    gap = ((found - wanted).abs().max() / wanted.abs().max()).item()
    print(f"{file}: differs from {protocol} by at most {gap:.1e} of the largest of {wanted.shape[1]} features")
    if not gap <= 1e-4:
        raise SystemExit(f"these are not the features of {protocol} for these weights; was the file made with --protocol?")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    inception = verbs.add_parser("inception", help="2048 features of the published FID weights")
    inception.add_argument("weights")
    inception.add_argument("--network", choices=["torch-fidelity", "pytorch-fid"], default="torch-fidelity")
    module = verbs.add_parser("module", help="features of a torch module [B, 3, S, S] to maps [B, F, h, w]")
    module.add_argument("place", metavar="FILE.py:FUNCTION")
    module.add_argument("weights", nargs="?")
    tiny = verbs.add_parser("tiny", help="twelve random features, for tests")
    checked = verbs.add_parser("check", help="compare a file with the package's own forward")
    checked.add_argument("file")
    checked.add_argument("weights")
    for verb, size in ((inception, 299), (module, 299), (tiny, 16)):
        verb.add_argument("-o", "--output", required=True)
        verb.add_argument("--size", type=int, default=size, help="of the images that the network sees")
    for verb in (inception, checked):
        verb.add_argument("--any-weights", action="store_true", help="weights other than the published ones")
    protocols = ["torch-fidelity", "pytorch-fid", "torchmetrics"]
    for verb in (inception, module, tiny, checked):
        verb.add_argument("--protocol", choices=protocols, default=protocols[0])
        verb.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28], metavar=("C", "H", "W"))
    arguments = parser.parse_args()

    if arguments.verb == "check":
        state = read_weights(arguments.weights, not arguments.any_weights)
        check(arguments.file, arguments.protocol, state, arguments.shape)
        return
    if arguments.verb == "inception":
        state = read_weights(arguments.weights, not arguments.any_weights)
        trunk = inception_trunk(inception_network(arguments.network, state))
    elif arguments.verb == "module":
        trunk = module_from(arguments.place, arguments.weights)
    else:
        trunk = tiny_trunk()
    save(Features(trunk, arguments.shape, arguments.size, arguments.protocol), arguments.output)


if __name__ == "__main__":
    main()
