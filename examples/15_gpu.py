"""The same program on whatever there is: a GPU if one works, or the CPU.

`device="auto"` chooses when the learner is made, and `tinyft doctor` says why it is not a GPU. From
there on nothing in this file asks which it is: losses, weights and gradients are read in the same
way. A GPU needs CuPy (`pip install ".[gpu]"`). Source: tinyft/backends/registry.py; the GPU's
kernels are explained in tinyft/backends/gpu/README.md.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

import tinyft as ft
from tinyft import backends
from tinyft.bundled import bundled

data = ft.ImageFolder(bundled("examples/animals8"), size=64, seed=0)
learner = ft.vision_learner(data, "resnet10s", device="auto", seed=0)
backend = backends.get(learner.device)
print(f"device: {backend.name}")

# 1. What a seed decides is drawn from counters, not by the device's own generator: the head's first
#    weights, the order of the photos, and which units dropout leaves out.
head = backends.host(learner.model.head.linear1.weight.data)
batch = next(data.train_batches(0, learner.preprocess))
ones = backend.upload(np.ones(16, np.float32))
kept = backends.host(backend.dropout(ones, 0.5, seed=0, stream=(0, 0))) > 0
print("1. the same on every device:")
print("   a new head begins with", " ".join(f"{weight:.5f}" for weight in head.ravel()[:4]))
print("   the first epoch begins with photos", " ".join(f"{i}" for i in batch.ids[:6]))
print("   a dropout mask:", "".join("x" if keep else "." for keep in kept))

# 2. Fine-tuning. On a GPU each batch travels there, one byte a number, while the one before is
#    computed, and a loss stays there until somebody reads it: reading waits. The first step of a
#    phase may compile kernels, so the clock starts behind it.
print("2. fine-tuning:")
plan, trained, started = learner.plan(2), 0, None
for record in learner.steps(plan):
    if record.phase == "everything" and started is None:
        backend.synchronize()
        started = time.perf_counter()
    elif record.phase == "everything":
        trained += len(record.ids)
    if record.validation:
        print(f"   {record.phase}: {record.validation.accuracy:.0%} of new photos right")
backend.synchronize()
speed = trained / (time.perf_counter() - started)
print(f"   {speed:,.0f} photos a second, reading and validation included")
# Of a GPU what CuPy took of its memory, else what the whole process had.
memory = backend.peak_bytes()
print("   memory unknown" if memory is None else f"   {memory / 1e6:,.0f} MB of memory at most")


# 3. Moving. Parameters, statistics and the optimizer's memory go along, bit by bit, and a file does
#    not say where it was written.
def bits():
    return {n: backends.host(array).tobytes() for n, array in learner.model.state_dict().items()}


before = bits()
learner.to("cpu")
print("3. the same bits after .to('cpu'):", bits() == before)
with tempfile.TemporaryDirectory() as folder:
    learner.save(Path(folder) / "animals.h5")
    learner = ft.load_learner(Path(folder) / "animals.h5", device="auto")
print("   the same bits from a file:", bits() == before)
guess = learner.predict(data.source("valid", 42))
print(f"   a photo shows a {guess.label}, with probability {guess.probability:.1f}")

# Prints:
#   device: cpu
#   1. the same on every device:
#      a new head begins with -0.01088 -0.02089 -0.05526 -0.05614
#      the first epoch begins with photos 74 187 95 164 167 56
#      a dropout mask: .xxxx.x.....x.x.
#   2. fine-tuning:
#      head alone: 65% of new photos right
#      everything: 82% of new photos right
#      everything: 84% of new photos right
#      331 photos a second, reading and validation included
#      265 MB of memory at most
#   3. the same bits after .to('cpu'): True
#      the same bits from a file: True
#      a photo shows a dalmatian, with probability 1.0

# Speed and memory are those of two cores of an AMD EPYC (Zen 4). The stand-in for a GPU in
# tests/backends/gpu printed the same photos, weights, mask and shares; no GPU was at hand.

# Three questions, answered by test_gpu_questions in tests/examples/test_questions.py:
#   1. Which of the three lines under 1. change with another seed?
#   2. What does backends.host make of an array of the CPU?
#   3. A network was saved on a GPU: what in its file says so?
