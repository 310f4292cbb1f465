"""Loads what `tinyft weights export` wrote: torchvision's ResNet with the head that was trained.

    from load_in_pytorch import load, prepare
    network, facts = load("flowers.safetensors")
    picture = PIL.Image.open("rose.jpg").convert("RGB")
    scores = network(prepare(picture, facts["preprocess"])[None])  # (1, classes)
    print(facts["classes"][scores.argmax()])

Needs torch, torchvision and safetensors, nothing of tinyft. Change it as you like.
"""

import json
from collections import OrderedDict

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import InterpolationMode, functional


def load(path):
    """The network, in evaluation mode, and what the file says of it."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    facts |= {name: json.loads(facts[name]) for name in ("classes", "preprocess", "network")}
    state = {name.replace("head.", "fc.", 1): x for name, x in load_file(path).items()}
    network = body(facts["arch"], facts["network"])
    C = network.inplanes  # the features' channels
    if facts["head"] == "fastai":
        network.avgpool, network.fc = BothPools(), fastai_head(C, len(state["fc.linear2.weight"]))
    else:
        network.fc = nn.Linear(C, len(state["fc.weight"]))
    network.load_state_dict(state)  # every name and shape, or an error
    return network.eval(), facts


def prepare(picture, preprocess):
    """From a picture of PIL, upright and RGB, to (3, S, S) float32."""
    resize, crop = preprocess["resize"], preprocess["crop"]
    picture = functional.resize(picture, resize, InterpolationMode(preprocess["interpolation"]))
    if not preprocess["whole_square"]:
        x = functional.to_tensor(functional.center_crop(picture, crop))
    else:  # of the middle square nothing is cut off
        left, top = ((side - resize) // 2 for side in picture.size)
        x = functional.to_tensor(functional.crop(picture, top, left, resize, resize))
        options = {"mode": "bilinear", "align_corners": True}
        x = nn.functional.interpolate(x[None], (crop, crop), **options)[0]
    return functional.normalize(x, preprocess["mean"], preprocess["std"])


def fastai_head(C, classes):
    return nn.Sequential(OrderedDict(
        bn1=nn.BatchNorm1d(2 * C), dropout1=nn.Dropout(0.25),
        linear1=nn.Linear(2 * C, 512, bias=False), relu=nn.ReLU(),
        bn2=nn.BatchNorm1d(512), dropout2=nn.Dropout(0.5),
        linear2=nn.Linear(512, classes, bias=False),
    ))  # fmt: skip


class BothPools(nn.Module):
    """The maximum and the mean of each channel, in this order."""

    def forward(self, x):
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


def body(arch, plan):
    """torchvision's network of that name; where it has none, its basic blocks by tinyft's plan."""
    if hasattr(models, arch):
        return getattr(models, arch)()
    network = models.ResNet(BasicBlock, [1, 1, 1, 1])
    network.inplanes = C = plan["widths"][0]
    network.conv1 = nn.Conv2d(3, C, 3, plan["stem_stride"], 1, bias=False)
    network.bn1, network.maxpool, network.layer4 = nn.BatchNorm2d(C), nn.Identity(), nn.Identity()
    for i, (depth, width) in enumerate(zip(plan["depths"], plan["widths"], strict=True), 1):
        stage = network._make_layer(BasicBlock, width, depth, stride=1 if i == 1 else 2)
        if plan["pad_shortcut"] and i > 1:
            stage[0].downsample = PadShortcut()
        setattr(network, f"layer{i}", stage)
    return network


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels, half on each side."""

    def forward(self, x):
        new = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new, new))
