"""A learner's training loop in PyTorch: the other side of `--frozen` and of the curves of
`--accuracy`. Imported only if PyTorch is there.

It begins where our learner is: a copy of its weights, the same layers frozen, the same batches at
the same rates. Written as PyTorch's users write it: eager, one AdamW, model.train() and
model.eval(), no kept features, no folded batch norms.
"""

from __future__ import annotations

import torch
from torch import nn

from tinyft.backends.cpu.runtime.threads import get_num_threads
from tinyft.bench.pytorch.side import LAYOUTS, Network, copied_linear, copied_norm
from tinyft.data.loader import Batch, PictureData
from tinyft.finetune.groups import Group
from tinyft.finetune.learner import Learner
from tinyft.finetune.recipe import Phase
from tinyft.nn.head import FastaiHead


class Head(nn.Module):
    """fastai's head with a copy of our head's weights; see tinyft/nn/head.py."""

    def __init__(self, head: FastaiHead):
        super().__init__()
        self.layers = nn.Sequential(
            copied_norm(head.bn1, nn.BatchNorm1d),
            nn.Dropout(head.dropout1.probability),
            copied_linear(head.linear1),
            nn.ReLU(inplace=True),
            copied_norm(head.bn2, nn.BatchNorm1d),
            nn.Dropout(head.dropout2.probability),
            copied_linear(head.linear2),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        largest = nn.functional.adaptive_max_pool2d(features, 1)
        average = nn.functional.adaptive_avg_pool2d(features, 1)
        return self.layers(torch.cat((largest, average), 1).flatten(1))


class TorchLearner:
    """What a Learner that trains with Adam would do next, done by PyTorch; in float64 to know what
    rounding does.
    """

    def __init__(self, learner: Learner, layout: str, dtype: torch.dtype = torch.float32):
        torch.set_num_threads(get_num_threads())
        self.layout, self.dtype = LAYOUTS[layout], dtype
        self.preprocess = learner.preprocess
        scale = self.preprocess.mean, self.preprocess.std
        self.mean, self.std = (
            255 * torch.tensor(part, dtype=dtype).reshape(1, 3, 1, 1) for part in scale
        )
        self.body = Network(learner.model).to(dtype, memory_format=self.layout)
        self.head = Head(learner.model.head).to(dtype)
        norms = [norm for group in learner.groups[:-1] for norm in group.norms.values()]
        self.fixed_body = all(norm.statistics == "running" for norm in norms)
        self.parameters, groups = self._parameters(learner), enumerate(learner.groups)
        self.optimizer = torch.optim.AdamW(
            [part for number, group in groups for part in _parts(number, group, self.parameters)],
            eps=learner.optimizer.eps,
        )
        self.square_momentum = learner.optimizer.square_momentum

    def _parameters(self, learner: Learner) -> dict[str, nn.Parameter]:
        """By our names: both networks list their layers in the same order."""
        ours = dict(learner.model.named_parameters())
        theirs = [*self.body.parameters(), *self.head.parameters()]
        for (name, our), their in zip(ours.items(), theirs, strict=True):
            if their.shape != our.shape:
                raise ValueError(f"{name} is {our.shape}; PyTorch's is {tuple(their.shape)}")
            their.requires_grad = our.requires_grad
        return dict(zip(ours, theirs, strict=True))

    def step(self, batch: Batch, phase: Phase, i: int) -> float:
        """Step number `i` of a phase: forward, loss, backward, update. The loss."""
        for part in self.optimizer.param_groups:
            part["lr"] = float(phase.lr[i][part["number"]])
            part["betas"] = (float(phase.momentum[i]), self.square_momentum)
        self.body.train(not self.fixed_body)
        self.head.train()
        loss = nn.functional.cross_entropy(self.logits(batch), torch.from_numpy(batch.labels))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def evaluate(self, data: PictureData) -> float:
        """The share of the validation pictures that are right."""
        self.body.eval()
        self.head.eval()
        right = 0
        with torch.inference_mode():
            for batch in data.valid_batches(self.preprocess):
                found = self.logits(batch).argmax(1)
                right += int((found == torch.from_numpy(batch.labels)).sum())
        return right / data.n_valid

    def logits(self, batch: Batch) -> torch.Tensor:
        """(N, classes), in the mode that the network is in"""
        pictures = torch.from_numpy(batch.images).permute(0, 3, 1, 2)  # channels_last as it is
        pictures = pictures.contiguous(memory_format=self.layout).to(self.dtype)
        return self.head(self.body.features((pictures - self.mean) / self.std))


def _parts(number: int, group: Group, parameters: dict[str, nn.Parameter]) -> list[dict]:
    """A layer group as AdamW takes it, in two: with weight decay and without."""
    parts = []
    for undecayed in (False, True):
        chosen = [parameters[n] for n in group.parameters if (n in group.undecayed) == undecayed]
        decay = 0.0 if undecayed else group.weight_decay
        parts.append({"params": chosen, "weight_decay": decay, "number": number})
    return [part for part in parts if part["params"]]
