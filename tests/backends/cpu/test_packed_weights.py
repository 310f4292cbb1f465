"""What is made of a constant weight is made once, is right, and dies with it."""

import gc
import weakref

import numpy as np
import pytest

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.conv import gemm
from tinyft.backends.cpu.conv.winograd import forward as winograd
from tinyft.backends.cpu.conv.winograd import stem as winograd_stem
from tinyft.backends.cpu.runtime import packed_weights
from tinyft.backends.reference import Backend
from tinyft.nn import build, fold

FAST, REFERENCE = CpuBackend(), Backend()

# C, F, kernel, stride, padding, size: Winograd's two schedules, direct, padded channels, pictures
SHAPES = {
    "tiles": (32, 32, 3, 1, 1, 12),
    "filters": (256, 256, 3, 1, 1, 7),
    "filters, blocks not full": (208, 176, 3, 1, 1, 7),
    "direct": (32, 48, 3, 2, 1, 12),
    "whole maps": (32, 48, 3, 1, 1, 2),
    "odd channels": (10, 37, 3, 1, 1, 9),
    "few channels": (3, 16, 3, 2, 1, 60),
    "stem": (3, 16, 7, 2, 3, 60),
}


@pytest.fixture
def count_passes(monkeypatch):
    """How often weights were packed or transformed."""
    passes = []
    for module in (gemm, winograd, winograd_stem):
        for name in ("pack_panels", "transform_all_filters", "transform_stem_filters"):
            if hasattr(module, name):
                kernel = getattr(module, name)

                def counting(*arguments, kernel=kernel):
                    passes.append(kernel)
                    kernel(*arguments)

                monkeypatch.setattr(module, name, counting)
    return passes


def arrays(C, F, kernel, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, size, size, C)).astype(np.float32)
    lying = rng.standard_normal((kernel, kernel, C, F)).astype(np.float32)
    return x, lying.transpose(3, 2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_constant_gives_the_same_bits_and_is_prepared_once(shape, count_passes):
    C, F, kernel, stride, padding, size = shape
    x, weight = arrays(C, F, kernel, size)
    window = {"stride": stride, "padding": padding}
    expected = FAST.conv2d(x, weight, **window)
    each_time = len(count_passes)
    constant = FAST.constant(weight)
    weight[...] = 0  # a copy was taken
    passes = []
    for _ in range(3):
        np.testing.assert_array_equal(FAST.conv2d(x, constant, **window), expected)
        passes.append(len(count_passes))
    assert each_time < passes[0] == passes[2]
    dout = np.ones_like(expected)
    np.testing.assert_allclose(
        FAST.conv2d_input_grad(dout, constant, x.shape, **window),
        REFERENCE.conv2d_input_grad(dout, constant, x.shape, **window),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_constant_is_prepared_for_each_stride():
    x, weight = arrays(3, 16, 16, 60)
    constant = FAST.constant(weight)
    for stride in (4, 5):
        expected = FAST.conv2d(x, weight, stride=stride, padding=0)
        got = FAST.conv2d(x, constant, stride=stride, padding=0)
        np.testing.assert_array_equal(got, expected)


def test_a_constant_cannot_be_written_to():
    constant = FAST.constant(arrays(8, 8, 3, 5)[1])
    with pytest.raises(ValueError, match="read-only"):
        constant *= 2


@pytest.mark.slow
def test_what_was_made_dies_with_the_constant():
    gc.collect()  # constants of other tests
    before = len(packed_weights._kept)
    x, weight = arrays(32, 32, 3, 12)
    constant = FAST.constant(weight)
    FAST.conv2d(x, constant, padding=1)
    made = [weakref.ref(array) for array in packed_weights._made_of(constant).values()]
    assert made
    del constant
    gc.collect()
    assert [ref() for ref in made] == [None] * len(made)
    assert len(packed_weights._kept) == before


@pytest.mark.slow
def test_an_entry_that_was_not_deleted_holds_for_no_other_array():
    """As after a Ctrl-C while the constant died: another array has its identity now."""
    x, weight = arrays(32, 32, 3, 12)
    expected = FAST.conv2d(x, weight, padding=1)
    constant = FAST.constant(2 * weight)
    FAST.conv2d(x, constant, padding=1)
    packed_weights._kept[id(weight)] = packed_weights._kept[id(constant)]
    del constant
    gc.collect()
    np.testing.assert_array_equal(FAST.conv2d(x, weight, padding=1), expected)
    packed_weights._kept.pop(id(weight), None)


def test_a_weight_that_trains_is_prepared_in_every_call():
    x, weight = arrays(32, 32, 3, 12)
    first = FAST.conv2d(x, weight, padding=1)
    weight *= 2
    np.testing.assert_array_equal(FAST.conv2d(x, weight, padding=1), 2 * first)


def test_a_folded_network_has_constant_weights():
    network = build("cifar_resnet20", seed=0)
    folded = fold(network)
    weights = [p.data for n, p in folded.named_parameters() if n.endswith("conv1.weight")]
    assert weights
    assert not any(w.flags.writeable for w in weights)
    assert all(p.data.flags.writeable for p in dict(network.named_parameters()).values())
