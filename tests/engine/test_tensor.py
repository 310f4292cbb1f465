"""The engine: what an autograd engine gets wrong, one test each."""

import contextlib
import copy
import functools
import gc
import itertools
import re
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tinyft as ft
from tinyft import backends, ops
from tinyft.engine.tape import (
    check_saved,
    current_layers,
    inside_an_op,
    kept_arrays,
    no_grad,
    observe,
    op,
)
from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError, TinyftError


@pytest.fixture(autouse=True)
def plain_kernels():
    """The engine is tested, not the kernels: nothing needs to be compiled."""
    with ft.backends.use("reference"):
        yield


def leaf(values, dtype="float32", name=None):
    return Tensor(np.array(values, dtype), requires_grad=True, name=name)


def grad_of(x):
    return x.grad.tolist()


# --------------------------------------------------------------------------------- what a tensor is


def test_lists_and_numbers_become_float32_and_arrays_keep_their_type():
    assert Tensor([1, 2]).dtype == Tensor(3).dtype == Tensor([1.5]).dtype == np.float32
    assert Tensor(np.zeros(2)).dtype == Tensor(np.float64(1)).dtype == np.float64
    assert Tensor(np.arange(3)).dtype == np.int64
    assert Tensor([True]).dtype == bool


def test_a_tensor_copies_the_array_it_is_made_from_and_is_contiguous():
    array = np.arange(6.0).reshape(2, 3)
    x = Tensor(array.T)
    array[:] = -1
    assert x.data.tolist() == [[0, 3], [1, 4], [2, 5]] and x.data.flags.c_contiguous


def test_integers_have_no_gradient():
    with pytest.raises(TypeError, match="only float tensors have gradients; got int64"):
        Tensor(np.arange(3), requires_grad=True)


def test_a_list_of_tensors_and_text_are_no_tensor():
    for value in ([Tensor([1.0]), Tensor([2.0])], "text", None):
        with pytest.raises(TypeError, match=r"a tensor holds numbers; got|NumPy takes no Tensor"):
            Tensor(value)


def test_what_a_tensor_says_of_itself():
    x = leaf([[1.0, 2.0, 3.0]])
    assert (x.shape, x.ndim, x.size) == ((1, 3), 2, 3)
    assert "made by mul" in repr(x * 2) and "made by" not in repr(x)
    assert "mul" in repr((x * 2).node) and "(1, 3)" in repr((x * 2).node)
    assert ops.sum(x).item() == 6.0


def test_detach_shares_the_array_and_forgets_the_history():
    y = leaf([1.0]) * 2
    alone = y.detach()
    assert alone.data is y.data and alone.node is None and not alone.requires_grad


# ------------------------------------------------------------------------ a tensor used twice (1.1)


def test_a_diamond():
    a = leaf([1.0])
    b = a + a
    (b + b).backward()
    assert grad_of(a) == [4.0]


def test_a_square_as_a_product():
    x = leaf([3.0])
    (x * x).backward()
    assert grad_of(x) == [6.0]


def test_a_residual_connection():
    x = leaf([-2.0, 5.0])
    (x + ops.relu(x)).backward(np.array([1, 10], np.float32))
    assert grad_of(x) == [1.0, 20.0]


def test_one_matrix_on_both_sides_of_a_product():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    ops.sum(x @ x).backward()
    # d sum(XX) / dX = 1 X^T + X^T 1
    ones = np.ones((2, 2), np.float32)
    assert np.array_equal(x.grad, ones @ x.data.T + x.data.T @ ones)


def test_diamonds_of_different_length_run_each_node_once():
    calls = []

    @op
    def counted(x):
        return x.data * 1, lambda dout: calls.append(1) or (dout * 1,)

    x = leaf([2.0])
    shared = counted(x)
    long = shared
    for _ in range(5):
        long = long * 2
    (long * shared + shared).backward()
    assert len(calls) == 1
    assert grad_of(x) == [32 * 2 * 2.0 + 1]


# ------------------------------------------------------------------------------ aliasing (1.2, 1.4)


def test_one_gradient_for_two_parents_is_not_shared():
    a, b = leaf([1.0]), leaf([1.0])
    (a + b + a).backward()
    assert grad_of(a) == [2.0] and grad_of(b) == [1.0] and a.grad is not b.grad


def test_two_leaves_never_share_a_gradient():
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (a + b).backward(np.ones(2, np.float32))
    assert not np.shares_memory(a.grad, b.grad)


def test_an_op_that_returns_one_array_twice():
    @op
    def both(a, b):
        def backward(dout):
            gradient = 2 * dout
            return gradient, gradient

        return 2 * (a.data + b.data), backward

    a, b = leaf([1.0]), leaf([1.0])
    both(a, b).backward()
    (a * 5).backward()
    assert grad_of(a) == [7.0] and grad_of(b) == [2.0]


def test_an_op_that_returns_one_array_to_a_leaf_and_to_a_node():
    @op
    def both(a, b):
        def backward(dout):
            gradient = 2 * dout
            return gradient, gradient

        return 2 * (a.data + b.data), backward

    a = leaf([1.0])
    inner = a * 3  # an older node, which waits with the shared array while a's own part grows
    both(a, inner).backward()
    assert grad_of(a) == [2.0 + 6.0]


def test_a_leaf_that_takes_an_array_first_does_not_change_what_waits():
    @op
    def mid(a, b):
        def backward(dout):
            gradient = dout / 2
            return gradient, gradient

        return (a.data + b.data) / 2, backward

    a, x = leaf([3.0]), leaf([1.0])
    older, newer = x * 1.0, a * 10.0
    (mid(a, older) + newer).backward()  # `newer` adds to a's gradient while `older` waits
    assert grad_of(a) == [0.5 + 10.0] and grad_of(x) == [0.5]


def test_a_second_contribution_leaves_the_other_parent_alone():
    """add hands one array to both parents; while b still waits with it, a receives more."""
    x, w = leaf([1.0]), leaf([1.0])
    a, b = x * 1.0, w * 1.0
    more = a * 5.0
    (more + (a + b)).backward()
    assert grad_of(x) == [6.0] and grad_of(w) == [1.0]


def test_the_upstream_gradient_belongs_to_the_caller():
    x, upstream = leaf([1.0, 2.0]), np.ones(2, np.float32)
    (x + 0.0).backward(upstream)
    (x + 0.0).backward(upstream)
    assert upstream.tolist() == [1.0, 1.0] and grad_of(x) == [2.0, 2.0]
    y = leaf([1.0, 2.0])
    y.backward(upstream)
    y.backward(upstream)
    assert upstream.tolist() == [1.0, 1.0] and grad_of(y) == [2.0, 2.0]


SHARING = {"reshape": lambda x: ops.reshape(x, (3, 2))}
FRESH = {
    "add": lambda x: x + 0.0,
    "mul": lambda x: x * 1.0,
    "div": lambda x: x / 1.0,
    "neg": lambda x: -x,
    "relu": ops.relu,
    "sum": lambda x: ops.sum(x, axis=()),
    "mean": lambda x: ops.mean(x, axis=()),
    "concatenate": lambda x: ops.concatenate(x),
    "dropout": lambda x: ops.dropout(x, 0.0, seed=0, stream=(0, 0)),
}


@pytest.mark.parametrize("name", [*SHARING, *FRESH])
def test_which_ops_give_a_view(name):
    x = leaf([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    function = {**SHARING, **FRESH}[name]
    assert np.shares_memory(function(x).data, x.data) == (name in SHARING)


# -------------------------------------------------------------------- changing what was saved (1.3)

CHANGES = {
    "mul": lambda x, w: x * w,
    "div": lambda x, w: x / w,
    "matmul": lambda x, w: x @ w,
    "linear": lambda x, w: ops.linear(x, w),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changing_a_saved_array_is_an_error_that_names_the_op(name):
    x, w = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([[1.0, 1.0], [1.0, 2.0]])
    with check_saved():
        out = CHANGES[name](x, w)
    w.data += 1
    with pytest.raises(TinyftError, match=rf"{name}: an array .* changed after the forward pass"):
        out.backward(np.ones((2, 2), np.float32))


def test_an_unchanged_graph_passes_the_check():
    x = leaf([[1.0, -2.0], [3.0, 4.0]])
    with check_saved():
        loss = ops.sum(ops.relu(x) * x)
    loss.backward()
    assert grad_of(x) == [[2.0, 0.0], [6.0, 8.0]]


def test_an_op_keeps_only_what_its_gradient_needs():
    x, w = leaf([[1.0, 2.0]]), Tensor([[3.0, 4.0]])
    (kept,) = kept_arrays((x * w).node.backward)  # w frozen: x is not needed
    assert kept is w.data
    assert kept_arrays((x + w).node.backward) == []
    out = ops.relu(x)
    assert [k is out.data for k in kept_arrays(out.node.backward)] == [True]


# ------------------------------------------------------------------------------- broadcasting (1.5)

SHAPES = [(), (1,), (3,), (2, 1), (2, 3), (1, 1, 3), (0, 3)]


def fits(a, b):
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def summed_to(gradient, shape):
    """The straightforward definition: every element of the result adds to the one it came from."""
    total = np.zeros(shape)
    places = np.broadcast_to(np.arange(total.size).reshape(shape), gradient.shape)
    np.add.at(total.reshape(-1), places.reshape(-1), gradient.reshape(-1))
    return total


@pytest.mark.parametrize("a_shape, b_shape", list(itertools.product(SHAPES, SHAPES)))
def test_a_broadcast_gradient_is_summed_back(a_shape, b_shape):
    rng = np.random.default_rng(0)
    for name in ("add", "sub", "mul", "div"):
        a = leaf(rng.uniform(0.5, 2, a_shape), "float64")
        b = leaf(rng.uniform(0.5, 2, b_shape), "float64")
        shape = fits(a_shape, b_shape)
        if shape is None:
            with pytest.raises(ShapeError, match=f"{name}: .*broadcast"):
                getattr(ops, name)(a, b)
            continue
        out, upstream = getattr(ops, name)(a, b), np.asarray(rng.standard_normal(shape))
        out.backward(upstream)
        x, y = a.data, b.data
        da, db = {
            "add": (upstream, upstream),
            "sub": (upstream, -upstream),
            "mul": (upstream * y, upstream * x),
            "div": (upstream / y, -upstream * x / y**2),
        }[name]
        for tensor, expected in ((a, da), (b, db)):
            assert tensor.grad.shape == tensor.shape and tensor.grad.dtype == np.float64
            assert np.allclose(tensor.grad, summed_to(expected, tensor.shape), rtol=1e-14)


# -------------------------------------------------------------------------------------- dtype (1.6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [2, 2.5, np.float64(2), np.float32(2), np.int64(2), np.array(2)])
def test_a_number_does_not_change_the_dtype(dtype, number):
    x = leaf([1.0, 2.0], dtype)
    results = [x + number, number + x, x - number, number - x, x * number, number * x]
    results += [x / number, number / x, -x]
    assert all(r.dtype == dtype for r in results)
    total = results[0]
    for r in results[1:]:
        total = total + r
    ops.mean(total).backward()
    assert x.grad.dtype == dtype


def test_numbers_on_the_left_keep_their_side():
    x = leaf([4.0])
    assert [(8 - x).item(), (8 / x).item(), (8 + x).item(), (8 * x).item()] == [4, 2, 12, 32]


def test_an_array_on_the_left_is_not_taken_apart():
    product = np.array([2.0, 3.0], np.float32) * leaf([1.0, 2.0])
    assert isinstance(product, Tensor) and product.data.tolist() == [2, 6]


def test_a_mixture_of_dtypes_is_refused():
    with pytest.raises(TypeError, match=r"mul: both tensors .* a is float32 and b is float64"):
        leaf([1.0]) * np.array([2.0])
    with pytest.raises(TypeError, match=r"mul: both tensors .* a is int64 and b is float32"):
        Tensor(np.array([1, 2])) * leaf([1.0, 2.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_list_takes_the_tensors_dtype(dtype):
    product = leaf([1.0, 2.0], dtype) * [0.5, 2]
    assert product.dtype == dtype and product.data.tolist() == [0.5, 4]


def test_an_upstream_gradient_of_another_dtype_is_converted():
    seen = []

    @op
    def spy(x):
        return x.data * 1, lambda dout: seen.append(dout.dtype) or (dout * 1,)

    x = leaf([1.0, 2.0])
    spy(x).backward(np.ones(2))
    assert seen == [np.float32] and x.grad.dtype == np.float32


def test_class_weights_in_float64_do_not_widen_the_gradients():
    seen = []

    @op
    def spy(x):
        return x.data * 1, lambda dout: seen.append(dout.dtype) or (dout * 1,)

    x = leaf([[1.0, 2.0]])
    loss = ops.cross_entropy(spy(x), np.array([0]), class_weights=np.array([0.3, 0.7]))
    loss.backward()
    assert loss.dtype == np.float32 and seen == [np.float32]


def small_network(dtype):
    """One forward pass through every op of a ResNet; the leaves and the loss."""
    rng = np.random.default_rng(3)
    shapes = [(4, 3, 3, 3), (4,), (4,), (4,), (5, 8), (5,)]
    leaves = [leaf(rng.standard_normal(s), dtype) for s in shapes]
    w, b, scale, shift, v, c = leaves
    x = Tensor(rng.standard_normal((2, 9, 8, 3)).astype(dtype))
    y = ops.conv2d(x, w, b, stride=2, padding=1)
    y, mean, variance = ops.batch_norm(y, scale, shift, relu=True)
    y = ops.max_pool2d(y, kernel=3, stride=2, padding=1)
    y = ops.batch_norm_eval(y, scale, shift, mean.data, variance.data, residual=y)
    y = ops.concatenate(ops.global_average_pool(y), ops.global_max_pool(y))
    y = ops.linear(ops.dropout(y, 0.2, seed=1, stream=(0, 0)), v, c)
    return leaves, ops.cross_entropy(y, np.array([0, 4]), label_smoothing=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_op_of_a_network_changes_the_dtype(dtype):
    seen = set()

    class Dtypes:
        def after_forward(self, node):
            seen.update(a.dtype for a in kept_arrays(node.backward) if a.dtype.kind == "f")

        def after_backward(self, node, gradient, input_gradients):
            seen.update(g.dtype for g in (gradient, *input_gradients) if g is not None)

    with observe(Dtypes()):
        leaves, loss = small_network(dtype)
        loss.backward()
    assert seen == {np.dtype(dtype)}
    assert {x.grad.dtype for x in leaves} == {np.dtype(dtype)}
    assert all(x.grad.shape == x.shape and np.isfinite(x.grad).all() for x in leaves)


# ---------------------------------------------------------------------- depth and memory (1.7, 1.8)


def test_a_chain_of_10000_ops():
    x = leaf([1.0])
    y = x
    for _ in range(10_000):  # ten times as deep as Python calls
        y = y + 1.0
    y.backward()
    assert y.item() == 10_001 and grad_of(x) == [1.0]


def test_activations_die_with_the_loss_without_the_collector():
    class Holder:
        """Something that a closure keeps, and that can be watched."""

    @op
    def double(x):
        kept = Holder()
        watched.append(weakref.ref(kept))
        return x.data * 2, lambda dout: (2 * dout, kept)[:1]

    watched = []
    gc.collect()
    gc.disable()
    try:
        hidden = double(leaf(np.ones((4, 4))))
        tensor = weakref.ref(hidden)
        loss = ops.sum(hidden * hidden)
        del hidden
        assert tensor() is None  # nodes point to nodes, not to the tensors between them
        assert watched[0]() is not None
        del loss
        assert watched[0]() is None
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("with_backward", [False, True])
def test_memory_is_flat_over_20_steps_without_the_collector(with_backward):
    x = leaf(np.ones((100, 1000)))  # 400 kB
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        peaks = []
        for _ in range(20):
            loss = ops.sum(ops.relu(x * 2.0) * x)
            if with_backward:
                x.grad = None
                loss.backward()
            del loss
            peaks.append(tracemalloc.get_traced_memory()[0])
        assert peaks[-1] < peaks[2] + 100_000
    finally:
        tracemalloc.stop()
        gc.enable()


def test_backward_frees_each_node_as_it_goes():
    alive, references = [], []

    class Holder:
        """Something that a closure keeps, and that can be watched."""

    @op
    def watch(x):
        kept = Holder()
        references.append(weakref.ref(kept))

        def backward(dout):
            assert kept
            alive.append([r() is not None for r in references])
            return (dout * 1,)

        return x.data * 1, backward

    watch(watch(watch(leaf([1.0])))).backward()
    # newest first: at each turn what the nodes before kept is gone
    assert alive == [[True, True, True], [True, True, False], [True, False, False]]


# ------------------------------------------------------------- backward, again and again (1.9-1.11)


def test_a_second_backward_says_so():
    x = leaf([2.0])
    loss = x * x
    loss.backward()
    with pytest.raises(TinyftError, match="mul was already used and is freed; call forward again"):
        loss.backward()
    assert grad_of(x) == [4.0]


def test_a_shared_part_is_used_once():
    x = leaf([2.0])
    trunk = x * 3.0
    first, second = trunk * 1.0, trunk * 2.0
    first.backward()
    with pytest.raises(TinyftError, match="already used"):
        second.backward()


def test_two_forwards_and_backwards_add_up_exactly():
    leaves, loss = small_network("float32")
    loss.backward()
    once = [x.grad.copy() for x in leaves]
    w = leaves[0]
    for _ in range(2):
        (w * 0.5).backward(once[0] * 2)
    assert np.array_equal(w.grad, once[0] * 3)


def test_the_upstream_gradient_may_be_a_tensor():
    a = leaf([1.0, 2.0])
    (a * 3).backward(Tensor([1.0, 10.0]))
    assert grad_of(a) == [3.0, 30.0]


def test_a_vector_needs_an_upstream_gradient():
    y = leaf([1.0, 2.0]) * 2
    with pytest.raises(ShapeError, match=r"shape \(2,\) has no single gradient"):
        y.backward()
    with pytest.raises(ShapeError, match=r"gradient is \(3,\), the tensor \(2,\)"):
        y.backward(np.ones(3, np.float32))


def test_one_element_of_any_shape_starts_by_itself():
    x = leaf([[[3.0]]])
    (x * x).backward()
    assert grad_of(x) == [[[6.0]]]


def test_an_unused_parameter_has_no_gradient():
    used, unused = leaf([1.0]), leaf([1.0])
    (used * 2.0).backward()
    assert unused.grad is None


def test_a_frozen_input_gets_none_and_ends_the_tape():
    frozen, trained = Tensor([2.0]), leaf([3.0])
    early = frozen * 5.0
    assert early.node is None and not early.requires_grad
    (early * trained).backward()
    assert frozen.grad is None and grad_of(trained) == [10.0]


def test_backward_of_a_constant_says_so():
    with pytest.raises(TinyftError, match="nothing that this tensor was made from requires"):
        Tensor([1.0]).backward()


def test_a_gradient_has_no_history():
    x = leaf([2.0])
    (x * x).backward()
    penalty = Tensor(x.grad) * 2.0
    assert penalty.node is None
    with pytest.raises(TinyftError, match="second derivatives are not supported"):
        penalty.backward()


# --------------------------------------------------------------------------- ops that readers write


def test_an_op_of_ones_own():
    @ft.op
    def scale(x, by):
        """x * by, by a number."""
        return x.data * by, lambda dout: (dout * by,)

    x = leaf([1.0, 2.0])
    ops.sum(scale(x, by=3.0)).backward()
    assert grad_of(x) == [3.0, 3.0] and scale.__doc__ == "x * by, by a number."


def test_tensors_passed_by_name_come_in_the_order_of_the_signature():
    @op
    def three(a, b=None, c=None):
        return a.data + b.data + c.data, lambda dout: (dout * 1, dout * 2, dout * 3)

    a, b, c = leaf([1.0]), leaf([1.0]), leaf([1.0])
    three(a, c=c, b=b).backward()
    assert [a.grad.item(), b.grad.item(), c.grad.item()] == [1, 2, 3]


def test_only_the_first_of_several_results_has_a_gradient():
    @op
    def two(x):
        return (x.data * 2, x.data + 1), lambda dout: (dout * 2,)

    first, second = two(leaf([1.0]))
    assert first.requires_grad and not second.requires_grad and second.data.tolist() == [2.0]


def test_a_wrong_number_of_gradients_names_the_op():
    @op
    def lazy(a, b):
        return a.data + b.data, lambda dout: (dout,)

    with pytest.raises(TinyftError, match="lazy: backward returned 1 gradients for 2 tensor"):
        lazy(leaf([1.0]), leaf([1.0])).backward()


def test_a_gradient_of_the_wrong_shape_names_op_and_argument():
    @op
    def wide(a, b):
        return a.data + b.data, lambda dout: (dout, dout)

    with pytest.raises(ShapeError, match=r"wide: .* shape \(2, 3\) for argument 1 of shape \(3,\)"):
        wide(leaf(np.ones((2, 3))), leaf(np.ones(3))).backward(np.ones((2, 3), np.float32))


# ------------------------------------------------------------------------------ recording, watching


def test_no_grad_makes_no_nodes():
    x = leaf([1.0])
    with no_grad():
        y = ops.relu(x * 2.0)
        assert y.node is None and not y.requires_grad
    assert (x * 2.0).node is not None


def test_no_grad_ends_with_an_exception():
    with pytest.raises(RuntimeError), no_grad():
        raise RuntimeError
    assert (leaf([1.0]) * 2.0).node is not None


class Log:
    def __init__(self):
        self.forward, self.backward = [], []

    def after_forward(self, node):
        self.forward.append((node.op, node.layer, node.output_shape))

    def after_backward(self, node, gradient, input_gradients):
        given = [None if g is None else g.tolist() for g in input_gradients]
        self.backward.append((node.op, node.layer, gradient.tolist(), given))


@contextlib.contextmanager
def in_layer(name):
    current_layers().append(name)
    yield
    current_layers().pop()


def test_observers_see_each_op_with_its_layer_and_its_gradients():
    log, x = Log(), leaf([1.0, -2.0])
    with observe(log), in_layer("layer3"):
        with in_layer("0"):
            y = x * 3.0
        loss = ops.sum(ops.relu(y))
        loss.backward()
    assert log.forward == [
        ("mul", "layer3.0", (2,)),
        ("relu", "layer3", (2,)),
        ("sum", "layer3", ()),
    ]
    assert log.backward == [
        ("sum", "layer3", 1.0, [[1.0, 1.0]]),
        ("relu", "layer3", [1.0, 1.0], [[1.0, 0.0]]),
        ("mul", "layer3.0", [1.0, 0.0], [[3.0, 0.0], None]),
    ]


def test_observers_see_frozen_ops_too_and_nothing_afterwards():
    log, x = Log(), Tensor([1.0])
    with observe(log):
        y = x * 2.0
    x * 3.0
    assert log.forward == [("mul", "", (1,))] and y.node is None


def test_observers_hear_of_ops_under_no_grad_and_nothing_is_recorded():
    log, x = Log(), leaf([1.0])
    with no_grad(), observe(log):
        y = x * 2.0
    assert log.forward == [("mul", "", (1,))]
    assert y.node is None and not y.requires_grad


def test_an_observer_hears_how_an_op_was_called_and_the_node_forgets_it():
    calls = []

    class Hearing(Log):
        def after_forward(self, node):
            calls.append(node.call)
            inside.append(inside_an_op())

        def after_backward(self, node, gradient, input_gradients):
            inside.append(inside_an_op())

    @op
    def scaled(x, factor):
        inside.append(inside_an_op())

        def backward(dout):
            inside.append(inside_an_op())
            return (dout * factor,)

        return x.data * factor, backward

    inside, x = [], leaf([1.0, -2.0])
    with observe(Hearing()):
        y = scaled(x, factor=3.0)
        y.backward(np.ones(2, np.float32))
    assert inside == [True, False, True, False]
    (call,) = calls
    assert call.function is scaled.__wrapped__ and call.args == (x,)
    assert call.options == {"factor": 3.0} and call.inputs == [x] and call.out is y
    assert y.node.call is None
    scaled(x, 2.0)
    assert inside[4:] == [False]  # nobody observes


def test_an_op_that_fails_under_an_observer_is_not_running_afterwards():
    with observe(Log()):
        with pytest.raises(ShapeError):
            ops.add(leaf([1.0, 2.0]), leaf([1.0, 2.0, 3.0]))
        assert not inside_an_op()


def test_several_observers_and_a_block_within_a_block():
    outer, inner, x = Log(), Log(), leaf([1.0])
    with observe(outer):
        with observe(inner):
            x * 2.0
        x + 2.0
    assert [f[0] for f in outer.forward] == ["mul", "add"]
    assert [f[0] for f in inner.forward] == ["mul"]


def test_each_thread_has_its_own_tape_settings():
    found = {}

    def elsewhere():
        log = Log()
        x = leaf([1.0])
        with observe(log), in_layer("other"):
            y = x * 2.0
            y.backward()
        found["node"], found["log"], found["grad"] = y.node, log, grad_of(x)

    mine = Log()
    with no_grad(), observe(mine):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert found["node"] is not None and found["grad"] == [2.0]
    assert found["log"].forward == [("mul", "other", (1,))] and mine.forward == []


def test_two_threads_train_at_once():
    results = {}

    def run(number):
        x = leaf([float(number)])
        for _ in range(200):
            y = x
            for _ in range(5):
                y = y * 1.0 + x
            y.backward()
        results[number] = grad_of(x)

    threads = [threading.Thread(target=run, args=(n,)) for n in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {1: [1200.0], 2: [1200.0]}


def test_a_constant_cannot_change_the_dtype():
    x = Tensor([1.0, 2.0])
    assert (x * np.array([1, 2])).dtype == np.float32
    assert (x * np.float64(2)).dtype == np.float32
    with pytest.raises(TypeError, match=r"cannot take 0\.5"):
        Tensor(np.array([1, 2])) * 0.5


def test_an_array_may_stand_on_either_side_of_a_product():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(3.0).reshape(3, 1)
    for out in (a @ Tensor(b), Tensor(a) @ b):
        assert out.data.tolist() == [[5.0], [14.0]]


def test_matmul_checks_what_it_is_given():
    a = Tensor(np.zeros((2, 3, 4)))
    with pytest.raises(ShapeError, match="do not broadcast"):
        a @ Tensor(np.zeros((3, 4, 5)))
    with pytest.raises(TypeError, match="same dtype"):
        a @ Tensor(np.zeros((4, 5), np.float32))


def test_what_a_backward_keeps_is_found_whatever_kind_of_function_it_is():
    @op
    def maybe_relu(x, rectify):
        if rectify:
            mask = x.data > 0

        def backward(dout):
            return (dout * mask if rectify else dout,)

        return x.data * mask if rectify else x.data, backward

    @op
    def double(x):
        return x.data * 2, functools.partial(lambda factor, dout: (dout * factor,), 2.0)

    x = Tensor([1.0, -1.0], requires_grad=True)
    assert kept_arrays(maybe_relu(x, False).node.backward) == []
    assert [k.dtype for k in kept_arrays(maybe_relu(x, True).node.backward)] == [bool]
    assert kept_arrays(double(x).node.backward) == []


def test_leaving_a_backend_leaves_the_others_as_they_are():
    first, second = backends.use("reference"), backends.use("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert backends.of(None).name == "cpu"
    second.__exit__(None, None, None)
    with backends.use("reference"), backends.use("auto"):
        assert backends.of(None).name == "reference"


def op_that_returns(made):
    @ft.op
    def careless(x):
        return made(x)

    return careless


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda x: x.data * 2, "careless: an op returns two things.* got ndarray"),
        (lambda x: (x.data * 2, None), r"got \(ndarray, NoneType\)"),
        (lambda x: (x * 2, lambda dout: (dout,)), r"got \(Tensor, function\)"),
        (lambda x: ([1.0, 2.0], lambda dout: (dout,)), r"got \(list, function\)"),
        (lambda x: (x.data, lambda dout: (dout,), 3), r"got \(ndarray, function, int\)"),
    ],
)
def test_an_op_that_returns_something_else_says_so(made, words):
    with pytest.raises(TinyftError, match=words):
        op_that_returns(made)(Tensor([1.0, 2.0], requires_grad=True))


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (lambda x, dout: dout * 2, "careless: backward should return a tuple.* got ndarray"),
        (lambda x, dout: None, "should return a tuple.* got NoneType"),
        (lambda x, dout: ([2.0, 2.0],), "for argument 0 it returned a list"),
        (lambda x, dout: (x * dout,), "it returned a Tensor; compute with x.data"),
        (lambda x, dout: (dout, dout), "returned 2 gradients for 1 tensor arguments"),
        (lambda x, dout: (dout[:1],), r"a gradient of shape \(1,\) for argument 0 of shape \(2,\)"),
    ],
)
def test_a_backward_that_returns_something_else_says_so(backward, words):
    careless = op_that_returns(lambda x: (x.data * 2, lambda dout: backward(x, dout)))
    out = careless(Tensor([1.0, 2.0], requires_grad=True))
    with pytest.raises(TinyftError, match=words):
        out.backward(np.ones(2, np.float32))


def test_an_array_in_place_of_a_tensor_is_told_where_it_came():
    with pytest.raises(TypeError, match=r"relu: expected a Tensor.*; got x ndarray"):
        ft.ops.relu(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="is a Tensor already"):
        Tensor(Tensor([1.0]))
    with pytest.raises(TypeError, match=r"expected an array of shape \(\); got 1.0"):
        ft.ops.sum(Tensor([1.0], requires_grad=True)).backward(1.0)


@pytest.mark.parametrize("value", [None, "3", [None, 1.0], 1j])
def test_what_is_no_number_is_refused_in_arithmetic(value):
    with pytest.raises(TypeError, match="which is no number"):
        Tensor([1.0, 2.0]) + value


def test_an_integer_that_does_not_fit_is_refused():
    for value in (300, -1, np.array([300, 1]), np.int64(300)):
        with pytest.raises(TypeError, match="it has no such numbers"):
            Tensor(np.array([1, 2], np.uint8)) + value
    assert (Tensor(np.array([1], np.uint8)) + 200).data.tolist() == [201]


def test_a_deep_copy_of_a_result_keeps_its_history():
    a = Tensor([1.0, 2.0], requires_grad=True)
    y = a * 2.0
    ft.ops.sum(y + copy.deepcopy(y)).backward()
    assert a.grad.tolist() == [4, 4]


def normalise():
    ones = np.ones(2, np.float32)
    arrays = np.arange(8, dtype=np.float32).reshape(4, 2), ones, ones
    parts = [Tensor(array, requires_grad=True) for array in arrays]
    return ft.ops.batch_norm(*parts, relu=True)[0].node.op


def convolve():
    rng = np.random.default_rng(0)
    shapes = (1, 9, 9, 16), (16, 16, 3, 3)
    x, weight = (Tensor(rng.standard_normal(s).astype(np.float32)) for s in shapes)
    return ft.ops.conv2d(x, weight, padding=1).data.tobytes()


def without_winograd():
    if backends.why_no_numba():
        pytest.skip(backends.why_no_numba())
    from tinyft.backends.cpu.conv.table import switch_winograd

    return switch_winograd(False)


@pytest.mark.parametrize(
    "block, look",
    [
        (no_grad, lambda: (Tensor([1.0], requires_grad=True) + 1.0).requires_grad),
        (lambda: backends.use("reference"), lambda: Tensor([1.0]).backend.name),
        (lambda: backends.use("reference"), lambda: backends.resolve("auto")),
        (ft.ops.unfused, normalise),
        (without_winograd, convolve),
    ],
    ids=["no_grad", "use", "resolve", "unfused", "winograd"],
)
def test_what_a_thread_asks_for_is_not_another_ones(block, look, monkeypatch, compiled):
    """Two threads enter such a block one after the other, and leave it in the same order."""
    monkeypatch.setattr(backends.registry, "gpu_available", lambda: True)
    mine, theirs = block(), block()
    with ThreadPoolExecutor(1) as me, ThreadPoolExecutor(1) as other:

        def seen():
            return me.submit(look).result(), other.submit(look).result()

        plain = me.submit(look).result()
        me.submit(mine.__enter__).result()
        inside = me.submit(look).result()
        assert inside != plain and seen() == (inside, plain)
        other.submit(theirs.__enter__).result()
        assert seen() == (inside, inside)
        me.submit(mine.__exit__, None, None, None).result()
        assert seen() == (plain, inside)
        other.submit(theirs.__exit__, None, None, None).result()
        assert seen() == (plain, plain)


def test_a_loss_that_is_kept_keeps_no_leaf_alive_once_backward_ran():
    x = Tensor([2.0], requires_grad=True)
    loss = x * 3
    loss.backward()
    alive = weakref.ref(x)
    del x
    assert alive() is None


# ------------------------------------------------------------------------------- taken for an array


@pytest.mark.parametrize(
    "ask",
    [np.array, np.asarray, np.exp, np.sum, np.mean, np.reshape, np.argmax, lambda x: np.stack([x])],
)
def test_numpy_says_what_to_give_it_instead_of_a_tensor(ask):
    x = ft.Tensor([[1.0, 2.0]])
    arguments = (x, (2, 1)) if ask is np.reshape else (x,)
    with pytest.raises(TypeError, match=r"takes no Tensor.* Give it the Tensor's array, x\.data"):
        ask(*arguments)
    with pytest.raises(TypeError, match=r"^np\.equal takes no Tensor"):  # was False, silently
        np.ones((1, 2)) == x  # noqa: B015
    with pytest.raises(TypeError, match=r"for a gradient use ft\.ops\.exp$"):
        np.exp(x)


def test_methods_operators_and_brackets_are_numpys():
    values = np.arange(6.0).reshape(2, 3) + 1
    x = ft.Tensor(values)
    for made, expected in [
        (x.sum(0), values.sum(0)), (x.mean(1, keepdims=True), values.mean(1, keepdims=True)),
        (x.reshape(3, -1), values.reshape(3, 2)), (x.reshape((6,)), values.reshape(6)),
        (x.T, values.T), (x.transpose(1, 0), values.T), (x**-0.5, values**-0.5),
        (x[:, [2, 0, 2]], values[:, [2, 0, 2]]), (x[values > 2], values[values > 2]),
    ]:  # fmt: skip
        assert np.array_equal(made.data, expected) and made.data.flags.c_contiguous
    assert [row.data.tolist() for row in x] == values.tolist()
    assert x[1, 2].item() == 6 and isinstance(x[1, 2].data, np.ndarray)
    with pytest.raises(TypeError):  # would compare Tensors, and always be False
        3.0 in x  # noqa: B015
    with pytest.raises(TypeError, match="exp\\(b \\* log\\(a\\)\\)"):
        x**x
    with pytest.raises(IndexError):
        x[2]


def test_batch_norm_written_out_is_the_fused_one():
    """Nine steps of arithmetic, differentiated by the tape, against the op's own backward."""
    rng = np.random.default_rng(0)
    names = {"x": (8, 2, 2, 3), "weight": (3,), "bias": (3,)}
    arrays = {name: rng.standard_normal(shape) for name, shape in names.items()}
    upstream = rng.standard_normal(names["x"])

    def written_out(x, weight, bias):
        centred = x - x.mean((0, 1, 2))
        return centred * ((centred**2).mean((0, 1, 2)) + 1e-5) ** -0.5 * weight + bias

    gradients = []
    for compute in (written_out, lambda *given: ops.batch_norm(*given, eps=1e-5)[0]):
        given = [ft.Tensor(a, requires_grad=True) for a in arrays.values()]
        compute(*given).backward(upstream)
        gradients.append([g.grad for g in given])
    for ours, fused in zip(*gradients, strict=True):
        assert np.allclose(ours, fused, rtol=1e-10, atol=1e-12)


def test_softmax_and_cross_entropy_written_out_are_the_fused_one():
    scores = np.random.default_rng(1).standard_normal((5, 4))
    labels = np.array([0, 3, 1, 1, 2])
    x, y = (ft.Tensor(scores, requires_grad=True) for _ in range(2))
    shifted = x - scores.max(1, keepdims=True)
    log_probabilities = shifted - ops.log(ops.exp(shifted).sum(1, keepdims=True))
    loss = -log_probabilities[np.arange(5), labels].mean()
    fused = ops.cross_entropy(y, labels)
    loss.backward()
    fused.backward()
    assert loss.item() == pytest.approx(fused.item(), rel=1e-12)
    assert np.allclose(x.grad, y.grad, rtol=1e-10, atol=1e-12)


def test_equal_values_share_the_gradient_of_a_maximum():
    a, b = (ft.Tensor([1.0, 2.0, 3.0], requires_grad=True), ft.Tensor([2.0], requires_grad=True))
    ops.maximum(a, b).sum().backward()
    assert a.grad.tolist() == [0, 0.5, 1] and b.grad.tolist() == [1.5]


def test_a_constant_power_has_a_gradient_of_zero_also_at_zero():
    x = ft.Tensor([0.0, 2.0], requires_grad=True)
    (x**0 + x**1).sum().backward()
    assert x.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("relu", "write ft.ops.relu(x)"),
        ("view", "write x.reshape(shape)"),
        ("numpy", "its array is x.data"),
        ("exp", "write ft.ops.exp(x)"),
        ("argmax", "its array, x.data"),
        ("astype", 'write ft.Tensor(x.data.astype("float64"))'),
    ],
)
def test_a_method_that_is_none_says_what_to_write(name, words):
    x = ft.Tensor([1.0])
    with pytest.raises(AttributeError, match=re.escape(f"a Tensor has no {name}; {words}")):
        getattr(x, name)
    assert not hasattr(x, name) and name not in dir(x) and "backward" in dir(x)


@pytest.mark.parametrize("number", [np.array([[2.0, 4.0]]), np.float64(2.0), np.float32(2)])
def test_arithmetic_with_numpys_arrays_and_numbers_on_the_left(number):
    x = ft.Tensor(np.array([[1.0, 8.0]]), requires_grad=True)
    for by_hand, found in [
        (number + x.data, number + x),
        (number - x.data, number - x),
        (number * x.data, number * x),
        (number / x.data, number / x),
    ]:
        assert isinstance(found, ft.Tensor) and found.requires_grad
        assert np.array_equal(found.data, by_hand)
    with pytest.raises(TypeError, match=r"^np\.power takes no Tensor"):
        number**x


def test_an_array_times_a_tensor_is_a_product_of_ours():
    x = ft.Tensor(np.array([[1.0], [8.0]]), requires_grad=True)
    product = np.array([[2.0, 3.0]]) @ x
    assert product.node.op == "matmul" and product.data.tolist() == [[26.0]]
    total = np.ones((2, 1))
    total += x
    assert isinstance(total, ft.Tensor) and total.node.op == "add"


def test_other_arrays_leave_the_operator_to_the_tensor():
    """CuPy and NumPy's masked arrays ask the object, and defer to one that answers None."""
    x = ft.Tensor(np.array([1.0, 2.0]))
    assert x.__array_ufunc__ is None
    product = np.ma.masked_array([2.0, 3.0], [False, True]) * x
    assert isinstance(product, ft.Tensor)


def test_a_block_that_another_thread_ends_takes_back_its_own_choice(compiled):
    """As the collector does, wherever it runs, with a generator that is left within a block."""
    before, block = Tensor([1.0]).backend, backends.use("cpu")
    block.__enter__()
    with ThreadPoolExecutor(1) as other:
        other.submit(block.__exit__, None, None, None).result()
    assert before.name == "reference" and Tensor([1.0]).backend is before
