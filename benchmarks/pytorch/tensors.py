"""Safetensors files, read with what PyTorch and Python have: eight bytes of length, a JSON header, numbers."""

import json
import struct

import torch

KINDS = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}


def read(path):
    """Tensors by name, and the metadata, of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        kind, shape = KINDS[entry["dtype"]], entry["shape"]
        # A copy, whose address is aligned.
        tensors[name] = torch.frombuffer(data[start:end], dtype=kind).reshape(shape).clone()
    return tensors, metadata


def part(tensors, prefix):
    """The tensors below `prefix`, without it in their names."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
