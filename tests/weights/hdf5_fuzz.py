"""Mutants of HDF5 files, their checksums made right again, and what becomes of reading them.

    python tests/weights/hdf5_fuzz.py 100000              mutants, in processes with limits
    python tests/weights/hdf5_fuzz.py 3000 --flip FILE    bits of a file, one in each mutant

A mutant that ends its process, takes 10 s or 2 GB, or raises what is no WeightsError ends the
command with 1; so does a flipped bit that is neither refused nor without effect.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from tinyft.bundled import bundled
from tinyft.errors import WeightsError
from tinyft.weights import (
    Preprocess,
    Weights,
    expected_shapes,
    read_arrays,
    save_weights,
    write_arrays,
)
from tinyft.weights.hdf5 import arrays as hdf5_arrays
from tinyft.weights.hdf5 import tree as hdf5_tree
from tinyft.weights.hdf5.index import UNDEFINED, Blocks, lookup3
from tinyft.weights.read import read_weights

MOST_SECONDS, MOST_BYTES = 10, 2 << 30
BATCH = 2000  # mutants of one process


class Repairing(Blocks):
    """Blocks of a file in memory; a wrong checksum is made right, and where they lie is kept."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, len(file.getbuffer()))
        self.met: list[tuple[int, int]] = []

    def block(self, address, length):
        block = super().block(address, length)
        self.met.append((address, length))
        return block

    def verify(self, address, block, at):
        covered = block[:at] if at + 4 == len(block) else block[:at] + bytes(4) + block[at + 4 :]
        self.file.seek(address + at)
        self.file.write(lookup3(covered).to_bytes(4, "little"))


def repaired(data: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """The file with right checksums, as far as a reader comes, and its index's blocks."""
    file = io.BytesIO(data)
    blocks = Repairing(file)
    with contextlib.suppress(Exception):  # what reading a mutant does is tested elsewhere
        hdf5_tree._Tree(blocks).visit("", blocks.root(), depth=0)
    return file.getvalue(), blocks.met


def small(format: str) -> tuple[dict, dict, dict]:
    """Arrays, attributes and texts as a file of that format has them, fewer of them."""
    rng = np.random.default_rng(0)
    shapes = {"conv1.weight": (4, 3, 3, 3), "bn1.weight": (4,), "layer1.0.conv1.weight": (4, 4)}
    prefix = "weights" if format == "tinyft-weights" else "model"
    arrays = {f"{prefix}.{n}": rng.normal(size=s).astype("f4") for n, s in shapes.items()}
    arrays |= {f"{prefix}.layer1.{i}.bn1.bias": np.ones(2, "f4") for i in range(10)}
    attributes = {"arch": "resnet18", "num_classes": 2, "bn_eps": 1e-5, "preprocess.crop": 32}
    attributes |= {"stride_in_1x1": False, "preprocess.mean": (0.5, 0.25, 0.125)}
    attributes |= {f"note{i}": "x" * i for i in range(8)}
    texts = {"classes": ["cat", "dog"], "learner": '{"step": 3}'}
    if format == "tinyft-checkpoint":
        arrays |= {"optimizer.step": np.array(7), "ids": np.arange(9, dtype="u1")}
        attributes, texts = {}, {"state": '{"optimizer_counts": [1, 2, 3]}'}
    return arrays, attributes, texts


def seeds(folder: Path) -> dict[str, bytes]:
    """A file of every kind that is read: ours of today, of version 1 as h5py wrote it, others'."""
    files = {"bundled": bundled("weights/resnet10s-tinyimagenet.h5").read_bytes()}
    shapes = expected_shapes("cifar_resnet20", 2).items()
    arrays = {name: np.ones(shape, "f4") for name, shape in shapes}
    whole = Weights("cifar_resnet20", arrays, ["cat", "dog"], Preprocess(32, 32))
    save_weights(folder / "whole.h5", whole)
    files["whole"] = (folder / "whole.h5").read_bytes()
    for format in ("tinyft-weights", "tinyft-checkpoint"):
        arrays, attributes, texts = small(format)
        path = folder / "small.h5"
        write_arrays(path, format, arrays, attributes, texts)
        files[format] = path.read_bytes()
        _, attributes, _ = read_arrays(path, format)
        attributes["format_version"] = 1
        del attributes["all_sha256"]
        for kind, tracked, libver in (("v1", True, None), ("h5py", False, None),
                                      ("latest", True, "latest")):  # fmt: skip
            by_h5py(path, arrays, attributes, texts, tracked, libver)
            files[f"{format} {kind}"] = path.read_bytes()
    return files


def by_h5py(path, arrays, attributes, texts, tracked, libver=None):
    """The file as tinyft's version 1 wrote it (with the order tracked), or as h5py would."""
    h5py.get_config().track_order = tracked
    try:
        with h5py.File(path, "w", track_order=tracked, libver=libver) as file:
            for name, array in arrays.items():
                file.create_dataset(name.replace(".", "/"), data=array)
            for name, text in texts.items():
                file.create_dataset(name, data=np.array(text, dtype=bytes))
            for name, value in attributes.items():
                group, _, own = name.rpartition(".")
                owner = file.require_group(group) if group else file
                owner.attrs[own] = np.bytes_(value) if isinstance(value, str) else value
    finally:
        h5py.get_config().track_order = False


def mutant(data: bytes, blocks: list[tuple[int, int]], rng: random.Random) -> bytes:
    """A few fields changed, most of them in the index, then the checksums made right."""
    changed = bytearray(data)
    places = [address for address, _ in blocks]
    strange = [0, 1, 255, 65535, 1 << 31, 1 << 32, 1 << 63, UNDEFINED, len(data), len(data) - 1]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        address, length = rng.choice(blocks) if rng.random() < 0.95 else (0, len(data))
        at = address + rng.randrange(length)
        kind, width = rng.random(), rng.choice([1, 2, 4, 8])
        if kind < 0.4:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind < 0.6:
            changed[at] = rng.randrange(256)
        elif kind < 0.9:
            value = rng.choice([*strange, rng.choice(places), at, rng.randrange(len(data))])
            changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        else:
            other, _ = rng.choice(blocks)
            changed[at : at + 16] = changed[other : other + 16]
    del changed[len(data) :]
    if rng.random() < 0.02:
        del changed[rng.randrange(len(changed)) :]
    return repaired(bytes(changed))[0]


def outcome(path: Path, format: str) -> str:
    """What reading the file comes to, by every way that reads one."""
    found = []
    ways = [lambda: read_arrays(path, format), lambda: read_weights(path)]
    for way in ways if format == "tinyft-weights" else ways[:1]:
        try:
            way()
            found.append("read")
        except WeightsError as error:
            unforeseen = str(error).partition("not what it seems (")[2].partition(":")[0]
            found.append(f"refused ({unforeseen})" if unforeseen else "refused")
    return " and ".join(sorted(set(found)))


def without_hashes() -> None:
    """Let the rest of the way be gone by what the hashes would stop."""
    hdf5_arrays._check_whole = lambda *_: None
    hdf5_arrays.ArrayFile.read_all = lambda self: {n: a.read() for n, a in self.arrays.items()}


def work(begin: int, end: int, folder: Path) -> dict[str, int]:
    """Read these mutants, under limits. The number of the one at work stands in a file."""
    files = {kind: (data, repaired(data)[1]) for kind, data in seeds(folder).items()}
    kinds = [*files] + [kind for kind in files if kind not in ("bundled", "whole")] * 3
    if begin // BATCH % 2:
        without_hashes()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    counts: collections.Counter[str] = collections.Counter()
    for number in range(begin, end):
        rng = random.Random(number)
        kind = rng.choice(kinds)
        path = folder / "mutant.h5"
        path.write_bytes(mutant(*files[kind], rng))
        (folder / "number").write_text(f"{number} ({kind})")
        signal.alarm(MOST_SECONDS)
        format = "tinyft-checkpoint" if "checkpoint" in kind else "tinyft-weights"
        counts[f"{kind}: {outcome(path, format)}"] += 1
        signal.alarm(0)
    return counts


def in_processes(count: int, first: int = 0) -> tuple[dict[str, int], list[str]]:
    """Outcomes of so many mutants, and of each process that failed the number and the reason."""
    counts: collections.Counter[str] = collections.Counter()
    failed = []
    for begin in range(first, first + count, BATCH):
        with tempfile.TemporaryDirectory() as folder:
            end = min(begin + BATCH, first + count)
            command = [sys.executable, __file__, "--work", str(begin), str(end), folder]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                at_work = Path(folder) / "number"
                number = at_work.read_text() if at_work.exists() else "none"
                failed.append(f"mutant {number}: {done.returncode} {done.stderr[-300:]}")
            else:
                counts.update(json.loads(done.stdout))
    failed += [name for name in counts if "MemoryError" in name]
    return dict(counts), failed


def flipped(path: Path, count: int, folder: Path) -> dict[str, int]:
    """Of so many mutants with one flipped bit each: how many were refused, had no effect, were
    taken for something else.
    """
    data = path.read_bytes()
    format = "tinyft-checkpoint" if b"tinyft-checkpoint" in data else "tinyft-weights"
    expected, counts, rng = content(path, format), collections.Counter(), random.Random(0)
    _, blocks = repaired(data)
    texts = [item for item in stored(data) if item.dtype.kind == "S"]
    places = [*blocks, *((item.offset, item.nbytes) for item in texts if item.nbytes)]
    for i in range(count):
        address, length = rng.choice(places) if i % 10 else (0, len(data))
        changed = bytearray(data)
        changed[address + rng.randrange(length)] ^= 1 << rng.randrange(8)
        (folder / "flipped.h5").write_bytes(repaired(bytes(changed))[0])
        try:
            same = content(folder / "flipped.h5", format) == expected
            counts["without effect" if same else "taken for something else"] += 1
        except WeightsError:
            counts["refused"] += 1
    return dict(counts)


def stored(data: bytes) -> list[hdf5_tree.Stored]:
    return list(hdf5_tree.read_tree(io.BytesIO(data))[0].values())


def content(path: Path, format: str) -> object:
    arrays, attributes, texts = read_arrays(path, format)
    numbers = {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in arrays.items()}
    return numbers, attributes, texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--flip", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        begin, end, folder = args.work
        print(json.dumps(work(int(begin), int(end), Path(folder))))
        return 0
    if args.flip:
        with tempfile.TemporaryDirectory() as folder:
            counts = flipped(args.flip, args.count, Path(folder))
        print(json.dumps(counts, indent=1))
        return int("taken for something else" in counts)
    counts, failed = in_processes(args.count, args.first)
    print(json.dumps({"outcomes": counts, "failed": failed}, indent=1, sort_keys=True))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
