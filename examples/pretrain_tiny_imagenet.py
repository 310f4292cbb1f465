"""Pretraining: how the weights that travel with tinyft were made.

A network learns to tell apart the 200 classes of Tiny ImageNet, 64 x 64 pixels, from random
weights. It is the loop that fine-tunes too, with one cycle of one learning rate and nothing frozen.

    python examples/pretrain_tiny_imagenet.py TRAIN.h5 VALID.h5 --run runs/pretrain --out weights.h5

takes an hour on two cores. It may be interrupted at any step: the same command goes on from the
newest checkpoint, at most a minute back, and ends with the same bits. The pictures are read with
h5py, which tinyft itself does not need (pip install h5py). Source:
tinyft/finetune/learner.py.
"""

import argparse
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

import tinyft as ft
from tinyft.cli.output import progress
from tinyft.finetune.build import published_learner
from tinyft.finetune.run.folder import Run
from tinyft.finetune.run.resume import resume
from tinyft.nn.folding import fold
from tinyft.weights import Preprocess, Weights, load_weights, save_weights

SHEET, SIDE = 8, 64  # a picture file holds 8 x 8 pictures of 64 x 64 pixels


def read_pictures(path):
    """All pictures (N, 64, 64, 3) uint8, their labels (N,), and the names of the classes."""
    with h5py.File(path) as file:
        data, offsets, labels = file["data"][:], file["offsets"][:], file["labels"][:]
        classes = [name.decode() for name in file["class_names"][:]]
    pictures = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)

    def decode(sheet):
        encoded = data[offsets[sheet] : offsets[sheet + 1]].tobytes()
        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))  # (512, 512, 3)
        tiles = pixels.reshape(SHEET, SIDE, SHEET, SIDE, 3).swapaxes(1, 2)  # (8, 8, 64, 64, 3)
        into = pictures[sheet * SHEET**2 : (sheet + 1) * SHEET**2]
        into[...] = tiles.reshape(-1, SIDE, SIDE, 3)[: len(into)]

    with ThreadPoolExecutor() as threads:
        list(threads.map(decode, range(len(offsets) - 1)))
    return (pictures, labels), classes


def begin(data, epochs, run_folder):
    """A new run: random weights, and one cycle of stochastic gradient descent with momentum."""
    learner = ft.vision_learner(
        data,
        "resnet10s",
        weights=None,
        head="linear",
        optimizer="momentum",
        weight_decay=5e-3,  # 5e-4 in PyTorch, where momentum multiplies it by 10
        label_smoothing=0.1,
    )
    plan = learner.one_cycle_plan(epochs, 0.2, pct_start=0.2, moms=(0.9, 0.9, 0.9))
    return learner, plan, Run.create(run_folder), 0


def publish(learner, data, path, training):
    """Write the weights under their published names, as somebody who shares a network would."""
    arrays = {
        name.replace("head.linear.", "fc."): array
        for name, array in learner.model.state_dict().items()
    }
    metadata = {"training": training, "licence": "MIT"}
    preprocess = Preprocess(resize=SIDE, crop=SIDE)
    weights = Weights(learner.arch, arrays, learner.classes, preprocess, metadata)
    save_weights(path, weights, half=True)
    weights = load_weights(path)  # as others will have it, rounded to half precision
    metrics = accuracies(published_learner(weights, weights.classes), data)
    save_weights(
        path, replace(weights, metadata=metadata | {"metrics": json.dumps(metrics)}), half=True
    )
    return metrics


def accuracies(learner, data):
    """How many validation pictures have their class first, and among the first five; in percent."""
    right = np.zeros(2)
    with ft.no_grad():
        network = fold(learner.model)
        for batch in data.valid_batches(learner.preprocess):
            best = (-network(learner.input(batch.images)).data).argsort(axis=1)[:, :5]  # (N, 5)
            hits = best == batch.labels[:, None]
            right += hits[:, 0].sum(), hits.sum()
    top1, top5 = (100 * right / data.n_valid).round(2).tolist()
    return {"top1": top1, "top5": top5}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", help="tiny_imagenet_train.h5")
    parser.add_argument("valid", help="tiny_imagenet_val.h5")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--out", type=Path, default=Path("resnet10s-tinyimagenet.h5"))
    args = parser.parse_args()

    (train, classes), (valid, _) = read_pictures(args.train), read_pictures(args.valid)
    data = ft.ImageArrays(train, valid, classes, size=SIDE, batch_size=128, augment="shift")
    if not (args.run / "learner.h5").exists():
        if (args.run / "run.json").exists():
            learner, plan, run, start, _ = resume(args.run, data)
        else:
            learner, plan, run, start = begin(data, args.epochs, args.run)
        print(plan)
        with progress(plan, start) as observer:
            learner.execute(plan, observers=[run, observer], start=start)
    learner = ft.load_learner(args.run / "learner.h5")
    training = (
        f"Pretrained by tinyft on {len(train[1]):,} photos of {len(classes)} classes "
        f"(Tiny ImageNet, {args.epochs} epochs)"
    )
    print(args.out, publish(learner, data, args.out, training))


if __name__ == "__main__":
    main()
