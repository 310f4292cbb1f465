"""Batches on their way to the GPU while it computes on the one before.

Two slots take turns. Each has a buffer in pinned memory, which the system may not move, so that the
copy needs no help from the processor; and one on the GPU. Copies have a stream of their own: what
is asked for there runs beside the kernels. Three events keep the order:

    pinned buffer    is filled again when the copy out of it has happened      (the host waits)
    GPU's buffer     is filled again when the step that read it has happened   (the copy waits)
    step             begins when its batch has arrived                         (the kernels wait)

The host's wait is for the batch before the last one, which has usually been there for long; it also
keeps the host from running more than two steps ahead of the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np


class Slot:
    """One of the two pairs of buffers, each as large as the largest batch so far."""

    def __init__(self, cupy: ModuleType):
        self.cupy = cupy
        self.pinned = self.on_gpu = None
        self.arrived = cupy.cuda.Event(disable_timing=True)
        self.consumed = cupy.cuda.Event(disable_timing=True)

    def send(self, images: np.ndarray, stream: Any) -> Any:
        """Begin to copy; the array on the GPU that will hold the images."""
        self.arrived.synchronize()
        if self.pinned is None or self.pinned.size < images.size:
            import cupyx

            self.consumed.synchronize()
            self.pinned = cupyx.empty_pinned(images.size, np.uint8)
            self.on_gpu = self.cupy.empty(images.size, np.uint8)
            self.consumed.record()  # the pool may hand out memory that a kernel still reads
        pinned = self.pinned[: images.size].reshape(images.shape)
        pinned[...] = images
        stream.wait_event(self.consumed)
        there = self.on_gpu[: images.size].reshape(images.shape)
        there.set(pinned, stream=stream)
        self.arrived.record(stream)
        return there


class Uploads:
    """Sends batches ahead, each to the slot that is free."""

    def __init__(self, cupy: ModuleType):
        self.cupy = cupy

    def ahead(self, batches: Iterator) -> Iterator:
        """The same batches, with `images` on the GPU: lent until the next one is asked for.

        A batch needs an array `images` of bytes, and is a dataclass; its labels stay where they
        are, since the loss checks them before it sends them.
        """
        stream = self.cupy.cuda.Stream(non_blocking=True)
        slots = [Slot(self.cupy), Slot(self.cupy)]
        sent = None
        for number, batch in enumerate(batches):
            slot = slots[number % 2]
            following = batch, slot, slot.send(batch.images, stream)
            if sent is not None:
                yield from self._use(*sent)
            sent = following
        if sent is not None:
            yield from self._use(*sent)

    def _use(self, batch: Any, slot: Slot, images: Any) -> Iterator:
        computing = self.cupy.cuda.get_current_stream()
        computing.wait_event(slot.arrived)
        yield replace(batch, images=images)
        slot.consumed.record(computing)
