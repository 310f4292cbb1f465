"""Which time counts as the kernels'. How much of a step it is, is not tested."""

import time

import pytest

from tinyft.backends.cpu.memory_bound import arrays
from tinyft.backends.cpu.runtime import threads
from tinyft.bench import measure as bench
from tinyft.bench.cases import Case
from tinyft.bench.measure import KernelClock

TINY = Case("cifar_resnet20", 2, 32)
PLACES = [
    (threads, "run"),
    (threads, "run_with_scratch"),
    (arrays, "run_with_scratch"),  # imported by name
    (arrays, "run_alone"),
]


def test_a_call_within_a_call_counts_once():
    clock = KernelClock()
    inner = clock.timed(lambda: time.sleep(0.02))
    outer = clock.timed(lambda: [time.sleep(0.02), inner(), inner()])
    outer()
    assert clock.calls == 1
    assert 0.06 <= clock.seconds < 0.09
    inner()
    assert clock.calls == 2


def test_a_call_that_raises_ends_too():
    clock = KernelClock()
    wrong = clock.timed(lambda: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            wrong()
    assert clock.calls == 2


def test_all_is_as_before_afterwards():
    before = [getattr(module, name) for module, name in PLACES]
    waiting = threads.wait_until
    with KernelClock().watching():
        during = [getattr(module, name) for module, name in PLACES]
        assert threads.wait_until is waiting  # part of run, and called by the workers
    after = [getattr(module, name) for module, name in PLACES]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert not any(a is b for a, b in zip(before, during, strict=True))


@pytest.mark.slow
def test_a_step():
    found = bench.outside_kernels(TINY, rounds=3)
    assert 0 < found["kernels"] < found["step"]
    assert 0 < found["outside_min"] <= found["outside"] < 1
    # 19 convolutions, 19 batch norms and 65 parameters: each starts a kernel at the least
    assert found["calls"] > 2 * 19 + 3 * 18 + 65
