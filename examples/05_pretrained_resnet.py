"""Load a pretrained ResNet and let it look at photos.

The network and the photos travel with tinyft: a ResNet of one block a stage, pretrained on the 200
classes of Tiny ImageNet, and photos of eight animals, some of which are among these classes.
TINYFT_WEIGHTS may name another file, for example torchvision's .pth of a ResNet-18.
Source: tinyft/weights/load.py.
"""

import os

import numpy as np

import tinyft as ft
from tinyft.bundled import bundled

# Any format is recognised by its first bytes, and no code in it is ever run. What comes back are
# arrays with names, and the preprocessing without which they would be worthless.
weights = ft.load_weights(os.environ.get("TINYFT_WEIGHTS", "resnet10s"))
print(f"{weights.arch}, {len(weights.arrays)} arrays, {weights.num_classes} classes")

# The network is built from a table of sizes and gets the arrays by name. In evaluation mode its
# batch norms use the statistics that they saw in training, not those of our few pictures.
model = ft.nn.build(weights.arch, num_classes=weights.num_classes).eval()
model.load_state_dict(weights.arrays)
shape = weights.arrays["conv1.weight"].shape
print(f"{model.count_parameters():,} parameters; conv1.weight {shape}")

# A photo becomes the network's input by the weights' own recipe: the shorter side to so many
# pixels, the square in the middle, minus the mean colour, divided by the deviation.
kinds = sorted(bundled("examples/animals8/valid").iterdir())
photos = [sorted(kind.glob("*.jpg"))[0] for kind in kinds]
recipe = weights.preprocess
batch = np.stack([ft.data.prepare(photo, recipe) for photo in photos])
x = (batch.astype(np.float32) / 255 - np.float32(recipe.mean)) / np.float32(recipe.std)
print("input", batch.shape, batch.dtype, "mean", [round(m, 3) for m in recipe.mean])

with ft.no_grad():  # nothing will be differentiated, so nothing is remembered
    logits = model(ft.Tensor(x)).data

# Softmax makes the scores into probabilities; the largest three of each photo.
exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
for kind, row in zip(kinds, probabilities, strict=True):
    best = row.argsort()[::-1][:3]
    said = (f"{weights.classes[i].split(',')[0]} {row[i]:.0%}" for i in best)
    print(f"  {kind.name:12}", ", ".join(said))

# Prints:
#   resnet10s, 62 arrays, 200 classes
#   1,277,800 parameters; conv1.weight (32, 3, 3, 3)
#   input (8, 64, 64, 3) uint8 mean [0.485, 0.456, 0.406]
#     cougar       cougar 35%, Chihuahua 6%, chain 5%
#     dalmatian    Chihuahua 40%, chain 11%, Labrador retriever 8%
#     dolphin      projectile 24%, albatross 14%, drumstick 5%
#     nautilus     magnetic compass 12%, gasmask 6%, umbrella 3%
#     rhinoceros   Labrador retriever 15%, Egyptian cat 11%, hog 9%
#     scorpion     gasmask 48%, scorpion 7%, fly 5%
#     sea_turtle   abacus 13%, tailed frog 7%, guinea pig 6%
#     seahorse     jellyfish 21%, dugong 6%, swimming trunks 6%

# With TINYFT_WEIGHTS naming a published ResNet-18, from the cougar on:
#     cougar       cougar 35%, lion 13%, pickelhaube 8%
#     dalmatian    dalmatian 96%, Great Dane 4%, English setter 0%
#     dolphin      killer whale 46%, grey whale 26%, great white shark 7%
#     nautilus     chambered nautilus 100%, pick 0%, zebra 0%
#     rhinoceros   triceratops 23%, clumber 11%, isopod 7%
#     scorpion     scorpion 84%, isopod 6%, American lobster 5%
#     sea_turtle   terrapin 36%, loggerhead 23%, leatherback turtle 20%
#     seahorse     sea cucumber 15%, isopod 6%, jellyfish 6%

# Three questions, answered by test_pretrained_resnet_questions in tests/examples/test_questions.py:
#   1. 38 parameters and 62 arrays: what are the other 24?
#   2. Without the mean and the deviation, for how many of the eight photos does the answer change?
#   3. model.train() in the place of eval(): does what is said of a photo depend on the others?
