"""Cut off a network's last layer and give it another.

A ResNet is a body, which turns a picture into features, and one last layer, which turns features
into the classes of its training. Fine-tuning keeps the body, throws the last layer away, and puts
a random head for other classes in its place. Source: tinyft/nn/head.py.

Only shapes and sizes are of interest here, so the weights are random.
"""

import numpy as np

import tinyft as ft
from tinyft.nn import FastaiHead, LinearHead, Module, attach, cut

pictures = ft.Tensor(np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32))


def tell(what, network):
    with ft.no_grad():
        shape = network.eval()(pictures).shape
    print(f"{what:24} {shape!s:14} {network.count_parameters():>10,} parameters")


# The published network: 1000 classes. fc alone is (1000, 512) numbers and a bias.
network = ft.resnet18()
tell("as published", network)

# Cut: no pool, no fc. What comes out is a picture again, 32 times smaller, with 512 channels.
body = cut(network)
tell("body", body)

# The smallest head: the mean of each channel, and one linear layer.
attach(body, LinearHead(body.num_features, num_classes=5))
tell("body + linear head", body)

# fastai's: the maximum and the mean of each channel (1024 numbers), and two linear layers with
# batch norms and dropout. It has most of what is to be learnt while the body is frozen.
attach(body, FastaiHead(body.num_features, num_classes=5))
tell("body + fastai head", body)
for name, parameter in body.head.named_parameters():
    print(f"  head.{name:16} {parameter.shape}")


# Any module will do. This one asks of each class where it is in the picture: a 1x1 convolution
# gives every place a score for every class, and the largest place decides.
class WhereHead(Module):
    def __init__(self, C, num_classes):
        super().__init__()
        self.score = ft.nn.Conv2d(C, num_classes, 1, bias=True)
        ft.nn.initialise(self, seed=0)

    def forward(self, features):
        return ft.ops.global_max_pool(self.score(features))


attach(body, WhereHead(body.num_features, num_classes=5))
tell("body + a head of ours", body)

# vision_learner does all this in one call; head= takes "fastai", "linear" or a module.

# Prints:
#   as published             (2, 1000)      11,689,512 parameters
#   body                     (2, 3, 3, 512) 11,176,512 parameters
#   body + linear head       (2, 5)         11,179,077 parameters
#   body + fastai head       (2, 5)         11,706,432 parameters
#     head.bn1.weight       (1024,)
#     head.bn1.bias         (1024,)
#     head.linear1.weight   (512, 1024)
#     head.bn2.weight       (512,)
#     head.bn2.bias         (512,)
#     head.linear2.weight   (5, 512)
#   body + a head of ours    (2, 5)         11,179,077 parameters

# Three questions, answered by test_cut_and_head_questions in tests/examples/test_questions.py:
#   1. Pictures of 64 x 64: what does the body make of them, and which parameters change?
#   2. How many parameters has a linear head for ten classes?
#   3. A head like WhereHead, with the mean in the place of the largest: which is it?
