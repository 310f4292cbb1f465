"""Data-parallel fine-tuning: several processes, each with its part of every batch, on MPI.

    pip install ".[mpi]"                                    # and an MPI: Open MPI, MPICH
    mpiexec -n 2 python examples/many_processes.py          # compare with -n 1

Each process has the whole network and computes the gradients of its part of the batch; between
backward and update they are averaged, so that all make the same update and stay alike. They are
added in the order of the processes, not as they arrive: the same bits from run to run.

A batch norm sees its own process's part alone: with `bn="frozen"` that changes nothing, with the
batch's statistics it is the batch norm of a smaller batch. docs/measurements.md has the times, and
what they would be on more machines.
"""

import hashlib
import os
import time

import numpy as np
from mpi4py import MPI

import tinyft as ft
from tinyft.bundled import bundled

processes, rank, size = MPI.COMM_WORLD, MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
BATCH = 16  # pictures of all processes together


class Part(ft.ImageFolder):
    """The pictures of one process: its rows of every batch, in an epoch of as many steps."""

    @property
    def steps_per_epoch(self):
        return self.n_train // (self.batch_size * size)

    def train_order(self, epoch):
        order = super().train_order(epoch)[: self.steps_per_epoch * self.batch_size * size]
        return order.reshape(-1, size, self.batch_size)[:, rank].reshape(-1)


def average(parameters):
    """The mean of all processes' gradients, added in the order of the processes."""
    mine = np.concatenate([p.grad.ravel() for p in parameters.values()])
    everyones = np.empty((size, mine.size), mine.dtype)
    processes.Allgather(mine, everyones)
    mean = everyones.sum(0) / size
    for p, part in zip(parameters.values(), np.split(mean, ends(parameters)), strict=True):
        p.grad = part.reshape(p.shape)


def ends(parameters):
    return np.cumsum([p.size for p in parameters.values()])[:-1]


data = Part(bundled("examples/animals8"), size=64, batch_size=BATCH // size, seed=0)
data.notices.append(f"process {rank + 1} of {size}: gradients are averaged over {BATCH} pictures")
learner = ft.vision_learner(data, "resnet10s", bn="frozen", head="linear", seed=0)
plan = learner.plan(int(os.environ.get("EPOCHS", "2")))
if rank == 0:
    print(plan)
began = time.perf_counter()
for record in learner.steps(plan, gradients=average):
    if rank == 0 and record.validation:
        print(f"step {record.step}: accuracy {100 * record.validation.accuracy:.2f} %")
state = learner.model.state_dict()
bits = hashlib.sha256(b"".join(array.tobytes() for array in state.values())).hexdigest()[:16]
alike = len(set(processes.allgather(bits))) == 1
if rank == 0:
    print(f"{size} processes, {time.perf_counter() - began:.1f} s; all have the same bits: {alike}")
    print(f"weights {bits}")
    if out := os.environ.get("OUT"):
        np.savez(out, **state)
