"""Load a published ResNet and let it look at a picture.

TINYFT_WEIGHTS may name a file with a ResNet-18's weights, for example torchvision's .pth file.
Without one nothing is downloaded: a random network is written to a file and takes the place of
the published one. It is read in the same way, and knows nothing. Source: tinyft/weights/load.py.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from shapes import draw

import tinyft as ft
from tinyft.weights import Preprocess, Weights


def random_file(folder):
    """A weights file as tinyft writes it: HDF5, with the preprocessing that belongs to it."""
    arrays, recipe = ft.resnet18(seed=0).state_dict(), Preprocess.for_architecture("resnet18")
    ft.save_weights(Path(folder) / "random.h5", Weights("resnet18", arrays, None, recipe))
    return Path(folder) / "random.h5"


# Any format is recognised by its first bytes, and no code in it is ever run. What comes back are
# arrays with names, and the preprocessing without which they would be worthless.
with tempfile.TemporaryDirectory() as folder:
    published = os.environ.get("TINYFT_WEIGHTS")
    weights = ft.load_weights(published or random_file(folder))
print("weights:", "published" if published else "random, since TINYFT_WEIGHTS names no file")
print(f"{weights.arch}, {len(weights.arrays)} arrays, {weights.num_classes} classes")

# The network is built from a table of sizes and gets the arrays by name. In evaluation mode its
# batch norms use the statistics that they saw in training, not those of our few pictures.
model = ft.resnet18().eval()
model.load_state_dict(weights.arrays)
print(
    f"{model.count_parameters():,} parameters; conv1.weight {weights.arrays['conv1.weight'].shape}"
)

# A picture becomes the network's input by the weights' own recipe: shorter side to 256 pixels, the
# middle 224 x 224, minus the mean colour, divided by the deviation.
names = ["circle", "ring", "star", "moon", "pair"]
pictures, _ = draw(names, 1, size=320, noise=2, seed=4)
recipe = weights.preprocess
batch = np.stack([ft.data.prepare(picture, recipe) for picture in pictures])
x = (batch.astype(np.float32) / 255 - np.float32(recipe.mean)) / np.float32(recipe.std)
print("input", batch.shape, batch.dtype, "mean", [round(m, 3) for m in recipe.mean])

with ft.no_grad():  # nothing will be differentiated, so nothing is remembered
    logits = model(ft.Tensor(x)).data

# Softmax makes 1000 numbers into probabilities; the largest three of each picture. A published
# network has seen photographs only; that it takes the star for a starfish is rather good.
exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
classes = weights.classes or [f"class {i}" for i in range(1000)]
for name, row in zip(names, probabilities, strict=True):
    best = row.argsort()[::-1][:3]
    print(f"{name}:", ", ".join(f"{classes[i]} {row[i]:.0%}" for i in best))

# Prints:
#   weights: random, since TINYFT_WEIGHTS names no file
#   resnet18, 102 arrays, 1000 classes
#   11,689,512 parameters; conv1.weight (64, 3, 7, 7)
#   input (5, 224, 224, 3) uint8 mean [0.485, 0.456, 0.406]
#   circle: class 527 1%, class 307 1%, class 493 1%
#   ring: class 527 0%, class 166 0%, class 493 0%
#   star: class 527 1%, class 788 1%, class 307 1%
#   moon: class 527 1%, class 788 1%, class 678 1%
#   pair: class 527 1%, class 678 1%, class 493 1%

# With a published file, from the circle on:
#   circle: traffic light 9%, tennis ball 5%, balloon 4%
#   ring: nematode 10%, toilet seat 7%, hook 6%
#   star: starfish 91%, pinwheel 1%, hair slide 1%
#   moon: toilet tissue 16%, paper towel 13%, nematode 10%
#   pair: iPod 7%, toilet seat 3%, bib 3%
