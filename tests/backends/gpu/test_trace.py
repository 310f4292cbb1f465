"""The microscope on the GPU backend: it looks at arrays that lie elsewhere, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tinyft import backends

pytestmark = pytest.mark.slow


def test_a_trace_measures_and_compares_what_lies_on_the_gpu(gpu):
    draw = np.random.default_rng(0)
    x = ft.Tensor(draw.standard_normal((2, 6, 6, 8)).astype(np.float32)).to("gpu")
    weight = ft.Tensor(draw.standard_normal((8, 8, 3, 3)).astype(np.float32)).to("gpu")
    weight.requires_grad = True
    with ft.trace(open=[0]) as trace:
        ft.ops.sum(ft.ops.relu(ft.ops.conv2d(x, weight, padding=1))).backward()
    node = trace[0]
    assert [call.by for call in (*node.forward, *node.backward)] == ["gpu:0", "gpu:0"]
    assert all(call.difference < 1e-6 for call in (*node.forward, *node.backward))
    assert len(node.entries) == 3 and max(e.difference for e in node.entries) < 1e-5
    gradient = backends.host(weight.grad)
    assert node.inputs[1].gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert node.kept_bytes == x.data.nbytes
    assert {call.kernel for call in trace.others} <= {"zeros_like"}
