"""Reading and writing pretrained weights, from whomever they come, without running their code.

`load_weights` reads every format; `save_weights` writes tinyft's own, an HDF5 file.
"""

from __future__ import annotations

from tinyft.nn.resnet import ARCHITECTURES
from tinyft.weights.files import file_sha256, replacing
from tinyft.weights.hdf5.arrays import content_sha256, read_arrays, write_arrays
from tinyft.weights.hdf5.weights_file import save_weights
from tinyft.weights.load import export_safetensors, load_weights
from tinyft.weights.model import LoadReport, Weights
from tinyft.weights.names import compare, expected_shapes, infer_architecture
from tinyft.weights.onnx_file import export_onnx
from tinyft.weights.preprocess import Preprocess
from tinyft.weights.published.cache import cached_path, fetch, verify
from tinyft.weights.published.registry import Entry, entries, find, imagenet_classes
from tinyft.weights.read import detect_format

__all__ = [
    "ARCHITECTURES",
    "Entry",
    "LoadReport",
    "Preprocess",
    "Weights",
    "cached_path",
    "compare",
    "content_sha256",
    "detect_format",
    "entries",
    "expected_shapes",
    "export_onnx",
    "export_safetensors",
    "fetch",
    "file_sha256",
    "find",
    "imagenet_classes",
    "infer_architecture",
    "load_weights",
    "read_arrays",
    "replacing",
    "save_weights",
    "verify",
    "write_arrays",
]
