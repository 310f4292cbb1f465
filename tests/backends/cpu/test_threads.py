"""The pool: every item once, errors reach the caller, users' threads and forks are safe."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import (
    AGAIN,
    THREAD,
    barrier,
    make_shares,
    next_item,
    next_start,
    whole_share,
)

FAST = CpuBackend()


@pytest.fixture(autouse=True)
def restore():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


@kernel
def visit(share, visits):
    item = next_item(share, visits.size)
    while item < visits.size:
        visits[item] += 1
        item = next_item(share, visits.size)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_item_is_computed_once(count):
    threads.set_num_threads(count)
    for size in (0, 1, 1000):
        visits = np.zeros(size, np.int64)
        for repetition in range(1, 20):
            threads.run(visit, visits)
            assert (visits == repetition).all()


@kernel
def take(share, count):
    return next_item(share, count)


@kernel
def take_start(share, step, size):
    return next_start(share, step, size)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_thread_takes_its_own_share_first_and_then_helps(count, size):
    shares = make_shares(size)
    assert all(share.ctypes.data % 64 == 0 for share in shares)
    own = [range(count * i // size, count * (i + 1) // size) for i in range(size)]
    first = [take(share, count) for share, items in zip(shares, own, strict=True) if items]
    assert first == [items[0] for items in own if items]
    rest = list(iter(lambda: take(shares[-1], count), count))
    assert rest[: len(own[-1][1:])] == [*own[-1][1:]]
    assert sorted(first + rest) == list(range(count))
    assert all(take(share, count) == count for share in shares)


def test_who_computes_alone_takes_all():
    share = whole_share()
    assert [take(share, 3) for _ in range(5)] == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("step, size", [(4, 0), (4, 1), (4, 4), (4, 5), (1, 3), (10, 95)])
def test_starts_are_multiples_of_the_step(step, size):
    shares = make_shares(2)
    starts = []
    while (start := take_start(shares[len(starts) % 2], step, size)) < size:
        starts.append(start)
    assert sorted(starts) == list(range(0, size, step))


@kernel
def add_up_twice(share, numbers, sums, found):
    """sums = 2 * numbers, and then found = the sum of them all, as each item of a second pass sees
    it.
    """
    item = next_item(share, sums.size)
    while item < sums.size:
        for _ in range(1000):  # long enough for one thread to be late
            sums[item] += numbers[item] / 500
        item = next_item(share, sums.size)
    barrier(share)
    item = next_item(share, found.size, AGAIN)
    while item < found.size:
        found[item] += sums.sum()
        item = next_item(share, found.size, AGAIN)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_second_pass_begins_when_all_have_made_the_first(count):
    threads.set_num_threads(count)
    numbers = np.arange(1.0, 101)
    for _ in range(30):
        sums, found = np.zeros(100), np.zeros(70)
        threads.run(add_up_twice, numbers, sums, found)
        np.testing.assert_allclose(found, 10100)
        sums[:], found[:] = 0, 0
        threads.run_alone(0, add_up_twice, numbers, sums, found)
        np.testing.assert_allclose(found, 10100)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_nobody_waits_for_a_thread_that_failed(failing):
    threads.set_num_threads(3)
    numbers = np.ones(100)

    def fail(share, *arguments):
        if share[THREAD] == failing:
            raise MemoryError(f"thread {failing}")
        add_up_twice(share, *arguments)

    for _ in range(3):
        with pytest.raises(MemoryError, match=f"thread {failing}"):
            threads.run(fail, numbers, np.zeros(100), np.zeros(70))
    found = np.zeros(70)
    threads.run(add_up_twice, numbers, np.zeros(100), found)
    np.testing.assert_allclose(found, 200)


@pytest.mark.slow
def test_workers_that_fell_asleep_wake_up():
    threads.set_num_threads(3)
    seen = set()
    all_three = threading.Barrier(3, timeout=10)

    def wait_for_all(share):
        all_three.wait()  # passes only if all three are here
        seen.add(threading.get_ident())

    for _ in range(3):
        threads.run(wait_for_all)
        threading.Event().wait(0.05)  # longer than they spin
    assert len(seen) == 3


@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_of_any_thread_reaches_the_caller(failing):
    threads.set_num_threads(2)

    def fail(share):
        if share[THREAD] == failing:
            raise ZeroDivisionError(f"thread {failing}")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match=f"thread {failing}"):
            threads.run(fail)
    visits = np.zeros(100, np.int64)
    threads.run(visit, visits)
    assert (visits == 1).all()


def test_ctrl_c_waits_for_the_workers():
    threads.set_num_threads(2)
    finished = []

    def interrupted(share):
        if share[THREAD] == 0:
            raise KeyboardInterrupt
        threading.Event().wait(0.05)
        finished.append(share[THREAD])

    with pytest.raises(KeyboardInterrupt):
        threads.run(interrupted)
    assert finished == [1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["announce_job", "wait_until", "_wait_longer"])
@pytest.mark.parametrize("is_new", [True, False])
def test_ctrl_c_at_any_place_spoils_no_later_kernel(where, is_new, monkeypatch):
    """In the place of a call of `where`, while the other thread still computes."""
    threads.set_num_threads(3)
    threads.set_num_threads(2)  # a new pool
    visits = np.zeros(1000, np.int64)
    if not is_new:
        threads.run(visit, visits)
        visits[:] = 0
    owner = threads.Pool if hasattr(threads.Pool, where) else threads
    original, caller, raised = getattr(owner, where), threading.get_ident(), []

    def interrupted(*arguments):
        if threading.get_ident() == caller and threads._state.pool.job and not raised:
            raised.append(where)
            raise KeyboardInterrupt
        return original(*arguments)

    def slow(share):
        threading.Event().wait(0.1 * share[THREAD])

    if is_new:
        threads._wanted_pool()
    monkeypatch.setattr(threads, "SPIN", 1)
    monkeypatch.setattr(owner, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        threads.run(slow)
    monkeypatch.undo()
    for repetition in range(1, 4):
        assert ends(visit, visits)
        assert (visits == repetition).all()
        threading.Event().wait(0.15)  # the other thread is done with `slow`, and looks for more


def ends(function, *arguments):
    """Whether a kernel comes to its end within ten seconds."""
    user = threading.Thread(target=threads.run, args=(function, *arguments), daemon=True)
    user.start()
    user.join(10)
    return not user.is_alive()


def test_a_kernel_within_a_kernel_runs_in_place():
    threads.set_num_threads(2)
    visits = np.zeros(10, np.int64)

    def outer(share):
        if share[THREAD] == 0:
            threads.run(visit, visits)

    threads.run(outer)
    assert (visits == 1).all()


def address(array):
    return array.__array_interface__["data"][0]


def test_scratch_is_used_again_and_never_twice_at_once():
    """Whatever views refer to it: one that a signal handler asks for is another one."""
    for size in (100, 200_000):
        mine = workspace.scratch("test", size)
        first = address(mine)
        assert first % 64 == 0 and mine.size >= size
        assert address(workspace.scratch("another", size)) != first
        mine = mine[:50].reshape(5, 10)[1:].T
        other = workspace.scratch("test", 50)
        assert address(other) != first
        last = address(other)
        del other
        assert address(workspace.scratch("test", 50)) == last
    with ThreadPoolExecutor(1) as others:
        assert others.submit(lambda: address(workspace.scratch("test", 50))).result() != last


def test_a_second_step_gets_no_new_scratch_memory(monkeypatch):
    """Not handed out again while anything refers to it: a loop that keeps the last round's memory
    while it asks for the next one's costs page faults in every round.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 56, 56, 64)).astype(np.float32)
    weight = rng.standard_normal((128, 64, 3, 3)).astype(np.float32)
    dout = rng.standard_normal((8, 28, 28, 128)).astype(np.float32)

    def step():
        FAST.conv2d(x, weight, stride=2, padding=1)
        FAST.conv2d_input_grad(dout, weight, x.shape, stride=2, padding=1)
        FAST.conv2d_weight_grad(dout, x, weight.shape, stride=2, padding=1)

    step()
    fresh, aligned_empty = [], workspace.aligned_empty
    monkeypatch.setattr(
        workspace, "aligned_empty", lambda size: fresh.append(size) or aligned_empty(size)
    )
    step()
    assert fresh == []


def test_work_of_each_thread_is_its_own():
    threads.set_num_threads(3)
    addresses = []
    barrier = threading.Barrier(3, timeout=10)

    def note(share, work, size):
        barrier.wait()
        assert work.size >= size
        addresses.append(work.ctypes.data)

    for _ in range(3):
        threads.run_with_scratch(1000, note, 1000)
    assert (len(addresses), len(set(addresses))) == (9, 3)


def convolve(seed, out):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 12, 12, 32)).astype(np.float32)
    weight = rng.standard_normal((32, 32, 3, 3)).astype(np.float32)
    for _ in range(20):
        out.append(FAST.conv2d(x, weight, padding=1).copy())
        out.append(FAST.conv2d(x, weight, stride=2).copy())


def test_a_users_own_threads():
    """Six threads convolve at once, while another changes the size of the pool."""
    threads.set_num_threads(2)
    expected = [[] for _ in range(6)]
    for seed, out in enumerate(expected):
        convolve(seed, out)
    actual = [[] for _ in range(6)]
    users = [threading.Thread(target=convolve, args=pair) for pair in enumerate(actual)]
    for user in users:
        user.start()
    for count in (1, 3, 2, 4) * 5:
        threads.set_num_threads(count)
    for user in users:
        user.join()
    for a, e in zip(actual, expected, strict=True):
        assert len(a) == len(e) == 40
        for one, other in zip(a, e, strict=True):
            np.testing.assert_array_equal(one, other)


FORK = """
import os, sys, threading
import numpy as np
from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.runtime import threads, workspace
threads.set_num_threads(3)
x, weight = np.ones((2, 12, 12, 32), np.float32), np.ones((32, 32, 3, 3), np.float32)
expected = CpuBackend().conv2d(x, weight, padding=1)
stop = threading.Event()
def keep_busy():                      # the pool is in use while the process forks
    while not stop.is_set():
        CpuBackend().conv2d(x, weight, padding=1)
user = threading.Thread(target=keep_busy)
user.start()
children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        same = np.array_equal(CpuBackend().conv2d(x, weight, padding=1), expected)
        os._exit(0 if same and threads.get_num_threads() == 3 else 1)
    children.append(child)
stop.set()
user.join()
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
assert np.array_equal(CpuBackend().conv2d(x, weight, padding=1), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_with_as_many_threads():
    count = threads.get_num_threads() + 1  # not what it would begin with
    threads.set_num_threads(count)
    with warnings.catch_warnings(action="ignore"):  # of threads, of which it uses none
        child = os.fork()
    if child == 0:
        found = 0
        try:
            found = threads.get_num_threads()
        finally:
            os._exit(found)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == count


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_pool_of_its_own():
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    subprocess.run(command, check=True, timeout=100)


CTRL_C = """
import faulthandler, random, signal, sys, time, weakref
import numpy as np
from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.runtime import threads, workspace
def stop(number, frame):
    raise KeyboardInterrupt
threads.set_num_threads(2)
array = np.ones(1 << 17, np.float32)
expected = CpuBackend().relu(array)
signal.signal(signal.SIGALRM, stop)
faulthandler.dump_traceback_later(60, exit=True)
stops, end = 0, time.monotonic() + 3
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 3e-4))
        for _ in range(50):
            CpuBackend().relu(array)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        stops += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert not threads._state.users
assert stops > 100, stops
threads.set_num_threads(1)
threads.set_num_threads(2)
assert np.array_equal(CpuBackend().relu(array), expected)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_ctrl_c_at_any_instant_leaves_the_pool_usable():
    command = [sys.executable, "-c", CTRL_C]
    done = subprocess.run(command, timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


HANDLER = """
import faulthandler, signal, sys
import numpy as np
from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.runtime import threads, workspace
threads.set_num_threads(2)
fast = CpuBackend()

def arrays(*shapes):
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

def calls(seed):
    global rng
    rng = np.random.default_rng(seed)
    for size, channels, filters, stride in (14, 32, 32, 1), (7, 128, 256, 1), (14, 64, 128, 2):
        out = -(-size // stride)
        x, weight, dout = arrays(
            (4, size, size, channels), (filters, channels, 3, 3), (4, out, out, filters)
        )
        window = {"stride": stride, "padding": 1}
        yield fast.conv2d, (x, weight), window
        yield fast.conv2d_input_grad, (dout, weight, x.shape), window
        yield fast.conv2d_weight_grad, (dout, x, weight.shape), window
    scale = np.ones(filters, np.float32)
    yield fast.batch_norm_train, (dout, scale, scale, 1e-5), {}
    yield fast.batch_norm_train_grad, (dout, dout, scale, scale, scale, 1e-5), {}
    x, weight = arrays((2, 40, 40, 3), (16, 3, 7, 7))
    yield fast.conv2d, (x, weight), {"stride": 2}

def bits(call):
    function, arguments, options = call
    found = function(*arguments, **options)
    return [a.tobytes() for a in (found if isinstance(found, tuple) else (found,))]

mine, its = list(calls(1)), list(calls(2))
expected, its_expected = [bits(call) for call in mine], [bits(call) for call in its]
interrupted, kept = 0, []
faulthandler.dump_traceback_later(60, exit=True)

def handler(*_):
    global interrupted
    interrupted += 1
    i = interrupted % len(its)
    assert bits(its[i]) == its_expected[i]
    threads.set_num_threads(2)
    kept[:] = [workspace.empty((1 << 16,))], workspace.statistics()
"""

AT_EACH_LINE = """
def trace(frame, event, _):
    if "cpu" not in frame.f_code.co_filename:
        return None
    place = frame.f_code, frame.f_lineno
    if event == "line" and place not in seen:
        seen.add(place)
        handler()
    return trace

for i, call in enumerate(mine):
    seen = set()
    interrupted = i - 1                # the handler begins with the same kind of call
    sys.settrace(trace)
    found = bits(call)
    sys.settrace(None)
    assert found == expected[i], call[0]
"""

BY_A_TIMER = """
signal.signal(signal.SIGALRM, handler)
while interrupted < 300:
    for call, right in zip(mine, expected):
        signal.setitimer(signal.ITIMER_REAL, 2e-4)
        assert bits(call) == right, call[0]
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", [AT_EACH_LINE, BY_A_TIMER], ids=["at each line", "by a timer"])
def test_a_signal_handler_may_compute(when):
    """What it interrupts, and what it computes itself, has the bits that it has without."""
    if "setitimer" in when and not hasattr(signal, "setitimer"):
        pytest.skip("no timers here")
    command = [sys.executable, "-c", HANDLER + when]
    done = subprocess.run(command, timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_worker_that_waits_keeps_no_array_alive():
    threads.set_num_threads(2)
    array = np.ones(1000)
    alive = weakref.ref(array)
    threads.run(lambda share, array: None, array)
    del array
    deadline = time.monotonic() + 10
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() is None


def default_in_new_process(**environment):
    code = "from tinyft.backends.cpu.runtime import threads; print(threads.get_num_threads())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_number_of_threads_from_the_environment():
    assert default_in_new_process(TINYFT_NUM_THREADS="3").stdout == "3\n"
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
        assert default_in_new_process(TINYFT_NUM_THREADS="").stdout == f"{cores}\n"
    wrong = default_in_new_process(TINYFT_NUM_THREADS="many")
    assert wrong.returncode == 1
    assert "TINYFT_NUM_THREADS must be a whole number from 1 to" in wrong.stderr
    assert "got 'many'" in wrong.stderr


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, 10**6])
def test_senseless_numbers_of_threads_are_refused(count):
    with pytest.raises(ValueError, match="whole number"):
        threads.set_num_threads(count)
