"""A module: parameters, buffers and smaller modules, each under a name.

Assigning is registering. A Module becomes a child: `self.conv1 = Conv2d(...)`. A leaf Tensor that
requires a gradient becomes a parameter: `self.weight = Tensor(..., requires_grad=True)`. Any other
Tensor, a constant or the result of an op, is an attribute like a number or an array, neither
trained nor saved. Another leaf that is assigned to a parameter's name replaces it, even one that
requires no gradient; anything else, such as None, unregisters it. The names joined with dots are
those of the published files: `layer3.0.conv1.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from tinyft import backends
from tinyft.display import Displayed
from tinyft.engine.tape import current_layers
from tinyft.engine.tensor import Tensor
from tinyft.errors import WeightsError


class Module(Displayed):
    """A part of a network. Subclasses write `forward`; calling the module runs it under the
    module's name.

    `training` says which of the two modes the module is in; `buffer_names` lists the attributes
    that are state but no parameters (plain arrays, saved with the weights), `constant_names` arrays
    that never change and are not saved.
    """

    buffer_names: tuple[str, ...] = ()
    constant_names: tuple[str, ...] = ()

    _children: dict[str, Module]
    _parameter_names: list[str]

    def __init__(self) -> None:
        vars(self).update(_children={}, _parameter_names=[])  # before any name can be registered
        self.training = True
        self.name = ""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, list | tuple | dict):
            self._expect_no_parts(name, value)
        if isinstance(value, Module):
            value.name = name
            self._children[name] = value
        else:
            self._children.pop(name, None)
        is_leaf = isinstance(value, Tensor) and value.node is None
        if name in self._parameter_names:
            if not is_leaf:
                self._parameter_names.remove(name)
        elif isinstance(value, Tensor) and is_leaf and value.requires_grad:
            self._parameter_names.append(name)
        super().__setattr__(name, value)

    def _expect_no_parts(self, name: str, values: list | tuple | dict) -> None:
        """Raises: TypeError if modules or parameters are among them: they would not train"""
        for value in values.values() if isinstance(values, dict) else values:
            if isinstance(value, Module) or (isinstance(value, Tensor) and value.requires_grad):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a {type(values).__name__} that holds a "
                    f"{type(value).__name__}, which would neither train nor be saved; use "
                    "nn.Sequential(...), or an attribute for each"
                )

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            setattr(self, name, None)  # which ends what it was registered as
        super().__delattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.name:
            return self.forward(*args, **kwargs)
        layers = current_layers()
        layers.append(self.name)
        try:
            return self.forward(*args, **kwargs)
        finally:
            layers.pop()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with their dotted names; parents first."""
        yield prefix, self
        for name, child in self._children.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters with their dotted names, in the order of the published files; one that two
        layers share, once, under its first name.
        """
        seen = set()
        for prefix, module in self.named_modules():
            for name in module._parameter_names:
                parameter = getattr(module, name)
                if parameter not in seen:
                    seen.add(parameter)
                    yield (f"{prefix}.{name}" if prefix else name), parameter

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer: name -> the array itself, in the published shape."""
        state = {}
        for prefix, module in self.named_modules():
            for name in (*module._parameter_names, *module.buffer_names):
                value = getattr(module, name)
                array = value.data if isinstance(value, Tensor) else value
                state[f"{prefix}.{name}" if prefix else name] = array
        return state

    def load_state_dict(self, arrays: Mapping[str, np.ndarray], strict: bool = True) -> None:
        """Copy arrays into the parameters and buffers of the same names.

        Raises: WeightsError that lists names that are missing or unexpected (if strict), what is no
        array of numbers, and shapes that differ; nothing is changed then
        """
        state = self.state_dict()
        problems = []
        if strict:
            problems += [f"missing: {name}" for name in state if name not in arrays]
            problems += [f"unexpected: {name}" for name in arrays if name not in state]
        for name, array in arrays.items():
            if isinstance(array, Tensor):
                problems.append(f"{name}: expected an array, got a Tensor; give its .data")
            elif not hasattr(array, "dtype") or array.dtype.kind not in "biuf":
                kind = getattr(array, "dtype", type(array).__name__)
                problems.append(f"{name}: expected an array of numbers, got {kind}")
            elif name in state and array.shape != state[name].shape:
                problems.append(f"{name}: expected {state[name].shape}, got {array.shape}")
        if problems:
            raise WeightsError("the arrays do not fit this network:\n  " + "\n  ".join(problems))
        for name, array in arrays.items():
            if name in state:
                backends.assign(state[name], array)  # keeps dtype and memory order

    def train(self, mode: bool = True) -> Self:
        """Switch this module and all below it to training (or, with False, to evaluation)."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    def remember_modes(self) -> Callable[[], None]:
        """A function that puts this module and all below it into the modes that they are in now."""
        modes = [(module, module.training) for _, module in self.named_modules()]

        def put_back() -> None:
            for module, training in modes:
                module.training = training

        return put_back

    def astype(self, dtype: str | np.dtype) -> Module:
        """Change the float type of every parameter and buffer, for example to float64 for a
        check. Integers stay what they are; gradients of the other type are dropped.
        """
        for _, parameter in self.named_parameters():
            if parameter.dtype != dtype:
                parameter.grad = None
            parameter.data = parameter.data.astype(dtype, order="K")
        for _, module in self.named_modules():
            for name in module.buffer_names:
                buffer = getattr(module, name)
                if buffer.dtype.kind == "f":
                    setattr(module, name, buffer.astype(dtype))
        return self

    def to(self, device: str) -> Self:
        """Move every parameter, gradient and buffer to a device: "cpu", "gpu", "gpu:1"; itself.

        Raises: DeviceError if there is no such device; nothing is changed then
        """
        backends.place(np.empty(0), device)
        for _, parameter in self.named_parameters():
            parameter.data = backends.place(parameter.data, device)
            if parameter.grad is not None:
                parameter.grad = backends.place(parameter.grad, device)
        for _, module in self.named_modules():
            for name in (*module.buffer_names, *module.constant_names):
                setattr(module, name, backends.place(getattr(module, name), device))
        return self

    def count_parameters(self) -> int:
        return sum(parameter.size for _, parameter in self.named_parameters())

    def __str__(self) -> str:
        return f"{type(self).__name__}, {self.count_parameters():,} parameters"
