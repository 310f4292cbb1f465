"""Using a trained network on new pictures, as a service does: one folded copy that is kept while
the weights are what they were, decoding ahead, and requests of several threads computed together.

A network is read from memory for each batch, whatever its size, so sixteen waiting requests
take little longer than four. Whoever finds nobody computing takes all that wait, in the order in
which they came, and computes them in its own thread; the others sleep until they have their
answer. There is no thread in the background, and nothing to start or to stop.

A convolution of fewer pictures may be computed by another algorithm, so a picture's numbers can
differ in their last bits with the batch that it was in: features by less than 1e-6 of the largest.

Letters: N pictures, S the side of the network's input, C classes, F features.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tinyft import backends
from tinyft.data.picture import prepare, printable
from tinyft.data.prefetch import Job, ahead, default_workers
from tinyft.data.split import Scan, pictures_below
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError
from tinyft.finetune.known import Known
from tinyft.finetune.records import Prediction
from tinyft.nn.folding import FoldedNetwork, fingerprint, fold
from tinyft.nn.layer_table import feature_shape, halves
from tinyft.nn.module import Module
from tinyft.ops import global_average_pool

if TYPE_CHECKING:
    from PIL import Image

TOGETHER = 16  # pictures: with 32, ResNet-18 takes as long for each, and twice the memory
Learner = Any  # which stands above this file: see training.py
Skip = Callable[[str, Exception], None]  # is told the name of a picture, and why it was left out


@dataclass(eq=False)
class Request:
    """Pictures that wait for their answer, and the answer: logits (N, C), features (N, F), and
    with `maps` the features at each place (N, h, w, F).
    """

    images: np.ndarray
    backend: object  # what computes in the thread that asks
    maps: bool = False
    answer: tuple[np.ndarray, ...] = ()  # until it is computed
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return bool(self.answer) or self.error is not None


class Answers:
    """Keeps what a learner predicts with: the folded network, and the requests that wait."""

    def __init__(self) -> None:
        self.forget()
        self.start_again()

    def __reduce__(self) -> tuple[type[Answers], tuple[()]]:
        """Give whoever copies its owner, by copy.deepcopy or pickle, a new one."""
        return Answers, ()

    def start_again(self) -> None:
        """Nobody computes, nobody waits: also in a forked child, which has the parent's locks."""
        self.process: int = os.getpid()
        self.computing: int = 0  # the thread that computes
        self.waiting: list[Request] = []
        self.changed: threading.Condition = threading.Condition()
        # one more than is worth it, for a signal handler that interrupts one of them
        most = default_workers() + 1
        self.decoding: threading.BoundedSemaphore = threading.BoundedSemaphore(most)

    def forget(self) -> None:
        """Let go of the folded network, and of what is known of the training pictures: the weights
        are about to change, many times.
        """
        self.kept: tuple[Any, FoldedNetwork[Module]] | None = None
        self.known: Known | None = None
        # of the last evaluation: the pictures, how they were prepared, features (n_valid, F)
        self.validated: tuple[Any, Any, np.ndarray] | None = None

    def network(self, learner: Learner) -> FoldedNetwork[Module]:
        """The learner's network, folded for the backend in use: the same one until any parameter,
        buffer or setting of it has changed, which takes 3 ms to see in a ResNet-18.
        """
        model, kept = learner.model, self.kept
        checksum = fingerprint(model), learner.mirrored
        now = model, checksum, backends.of(np.empty(0)).name
        if kept is not None and kept[0][:2] != now[:2]:
            self.known = self.validated = None
        if kept is None or kept[0] != now:
            kept = self.kept = None  # before the next one takes its memory
            kept = self.kept = now, fold(model, mirrored=learner.mirrored)
        return kept[1]

    def ask(
        self, learner: Learner, images: np.ndarray, *, maps: bool = False
    ) -> tuple[np.ndarray, ...]:
        """Compute logits (N, C) and features (N, F) of prepared pictures (N, S, S, 3) uint8; with
        `maps` also the features at each place (N, h, w, F). A network without them gives (N, 0).

        Raises: ValueError for `maps` of a network without features
        """
        if maps:
            learner.expect_features("Grad-CAM")
        if self.process != os.getpid():
            self.start_again()
        request, me = Request(images, backends.of(images), maps), threading.get_ident()
        if self.computing == me:  # a signal handler, which would wait for what it interrupts
            self._answer(learner, [request])
        else:
            self._ask_with_others(learner, request, me)
        if request.error is not None:
            raise request.error
        return request.answer

    def _ask_with_others(self, learner: Learner, request: Request, me: int) -> None:
        self.waiting.append(request)
        try:
            while not request.is_done:
                with self.changed:
                    while self.computing and not request.is_done:
                        self.changed.wait()
                    if request.is_done:
                        return
                    self.computing, batch = me, self._next(request.backend)
                self._answer(learner, batch)
                self.end(me)
        finally:  # Ctrl-C may come anywhere
            self.end(me)
            if not request.is_done and request in self.waiting:
                self.waiting.remove(request)

    def end(self, me: int) -> None:
        """Let another thread compute, if `me` is the one that does."""
        if self.computing == me:
            with self.changed:
                self.computing = 0
                self.changed.notify_all()

    def _next(self, backend: object) -> list[Request]:
        """Take the requests to compute now: of those for this backend, the oldest."""
        batch: list[Request] = []
        count = 0
        for request in [each for each in self.waiting if each.backend is backend]:
            count += len(request.images)
            alike = not batch or request.images.shape[1:] == batch[0].images.shape[1:]
            if batch and (count > TOGETHER or not alike):
                break
            self.waiting.remove(request)
            batch.append(request)
        return batch

    def _answer(self, learner: Learner, batch: list[Request]) -> None:
        """Compute the requests as one batch, and give each its rows."""
        try:
            asked = [request.images for request in batch]
            images = np.concatenate(asked) if len(asked) > 1 else asked[0]
            with no_grad(), backends.use(learner.device):
                network = self.network(learner).network
                outputs = computed(network, learner.input(images), learner.has_features)
                if not any(request.maps for request in batch):
                    del outputs[2:]
                outputs = [backends.host(array) for array in outputs]
            start = 0
            for request in batch:
                rows = slice(start, start := start + len(request.images))
                request.answer = tuple(array[rows] for array in outputs[: 3 if request.maps else 2])
        except Exception as error:
            for request in batch:
                request.error = error
        finally:  # a Ctrl-C is for this thread alone
            self.waiting[:0] = [request for request in batch if not request.is_done]


def computed(network: Module, x: Tensor, has_features: bool) -> list[np.ndarray]:
    """Give logits (N, C), features (N, F), and the features as they are; under no_grad."""
    if not has_features:
        logits = network(x).data
        return [logits, logits[:, :0]]
    body, head = halves(network)
    maps = body(x)
    changed = "forward" in vars(network)  # as a whole: see inspection/trace/activations.py
    logits = network(x) if changed else head(maps)
    return [logits.data, pooled(maps), maps.data]


def pooled(features: Tensor) -> np.ndarray:
    """(N, h, w, F) or (N, F) -> the mean over all places, (N, F)"""
    return global_average_pool(features).data if features.ndim == 4 else features.data


# ------------------------------------------------------------------------- from pictures to answers


@overload
def predict(learner: Learner, images: bytes | Image.Image) -> Prediction: ...
@overload
def predict(learner: Learner, images: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...
@overload  # of a folder or an array (N, H, W, 3) a list, which their types do not say
def predict(learner: Learner, images: str | os.PathLike[str] | np.ndarray) -> Prediction | Any: ...
def predict(learner: Learner, images: Any) -> Prediction | list[Prediction]:
    """Say the class of a picture: a path, the bytes of a file, a picture of Pillow, or an array
    (H, W, 3) uint8. A folder, an array (N, H, W, 3) or a list of any of these gives a list.

    Threads may call it at the same time; their pictures are computed together.
    Raises: DataError for a picture that cannot be used, naming the file if it is damaged, and for a
    folder without any; TypeError for what is no picture; OSError
    """
    answers = list(predictions(learner, images))
    return answers if are_several(images) else answers[0]


def embed(learner: Learner, images: Any) -> np.ndarray:
    """Describe each picture by the body's features, the mean over all places: (N, F) float32, of
    one picture (1, F). Takes and raises what `predict` does.

    Raises: ValueError for a network without features
    """
    learner.expect_features("embed")
    parts = [features for _, _, features in answers(learner, images)]
    if parts:
        return np.concatenate(parts)
    shape = feature_shape(learner.model, learner.adjusted_preprocess().crop)
    assert shape is not None  # as `expect_features` says
    return np.empty((0, shape[-1]), "f4")


def predictions(learner: Learner, images: Any, *, skip: Skip | None = None) -> Iterator[Prediction]:
    """Yield what `predict` says of each picture, as soon as its batch is computed. Of a picture
    that cannot be used `skip` is told, where it is given, and the others go on.
    """
    for names, logits, features in answers(learner, images, skip):
        known = learner.answers.known
        others = known.judge(features) if known else [{}] * len(names)
        for name, row, other in zip(names, logits, others, strict=True):
            probabilities = softmax(row)
            best = int(probabilities.argmax())
            label, probability = learner.classes[best], float(probabilities[best])
            yield Prediction(name, label, probability, probabilities, **other)


def answers(
    learner: Learner, images: Any, skip: Skip | None = None
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Yield names, logits (n, C) and features (n, F) of the pictures in order, batch by batch;
    threads decode the next batches meanwhile.
    """
    preprocess, service = learner.adjusted_preprocess(), learner.answers

    def fill(pixels: np.ndarray, row: int, source: Any, bad: dict[int, Exception]) -> None:
        try:
            with service.decoding:  # or forty threads hold forty photographs of full size
                pixels[row] = prepare(source, preprocess)
        except (DataError, OSError) as error:
            if skip is None:
                raise
            bad[row] = error

    def jobs() -> Iterator[Job[tuple[tuple[str, ...], np.ndarray, dict[int, Exception]]]]:
        named = sources(images)
        while group := list(itertools.islice(named, TOGETHER)):
            names, pictures = zip(*group, strict=True)
            pixels = np.empty((len(group), preprocess.crop, preprocess.crop, 3), np.uint8)
            bad: dict[int, Exception] = {}
            tasks = [partial(fill, pixels, row, s, bad) for row, s in enumerate(pictures)]
            yield (names, pixels, bad), tasks

    workers = default_workers() if are_several(images) else 0
    for names, pixels, bad in ahead(jobs(), workers):
        if skip is not None:
            for row in sorted(bad):
                skip(names[row], bad[row])
        good = [row for row in range(len(names)) if row not in bad]
        if good:
            shown = pixels[good] if bad else pixels
            yield [names[row] for row in good], *service.ask(learner, shown)


def are_several(images: Any) -> bool:
    """True for a list, a folder or an array (N, H, W, 3); False for what should be one picture."""
    if isinstance(images, str | os.PathLike):
        return Path(images).is_dir()
    return isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4


def sources(images: Any) -> Iterator[tuple[str, Any]]:
    """Yield each picture with its name: that of its file, or what it is."""
    if isinstance(images, list | tuple):
        for each in images:
            yield from sources(each)
    elif are_several(images) and isinstance(images, str | os.PathLike):
        files = pictures_below(Path(images), Scan())
        if not files:
            raise DataError(f"there are no pictures in {printable(images)}")
        yield from ((str(file), file) for file in files)
    elif are_several(images):
        yield from ((f"array[{i}]", pixels) for i, pixels in enumerate(images))
    elif isinstance(images, str | os.PathLike):
        yield str(images), images
    else:
        kinds = {np.ndarray: "array", bytes: "bytes"}
        yield kinds.get(type(images), str(getattr(images, "filename", "") or "picture")), images


def softmax(logits: np.ndarray) -> np.ndarray:
    """(..., C) -> probabilities (..., C)"""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
