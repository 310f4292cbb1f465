"""The pool of memory for results: never lent twice, given back, bounded."""

import gc
import itertools
import mmap
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from tinyft.backends.cpu.runtime import workspace
from tinyft.backends.cpu.runtime.workspace import SLACK, SMALL, WINDOW, MemoryPool
from tinyft.engine import tape

pytestmark = pytest.mark.slow


BIG = (4, SMALL // 4)  # 256 KiB of float32


@pytest.fixture(autouse=True)
def clean():
    """Each test starts and ends without anything lent by it or idle."""
    gc.collect()
    workspace.release()
    before = workspace.statistics().lent
    yield
    gc.collect()
    workspace.release()
    assert workspace.statistics().lent == before


class Owner:
    """As an array is: something that a reference can wait for."""


def come_back(pool, *pieces):
    """The owners of these pieces are gone."""
    for piece in pieces:
        owner = Owner()
        reference = weakref.ref(owner, pool.coming_back.append)
        workspace._lendings[id(reference)] = reference, piece
        del owner


def address(array):
    return array.__array_interface__["data"][0]


def test_array_is_like_np_empty():
    for shape, dtype in [(BIG, np.float32), ((3, 100_001), np.uint8), ((70_000,), np.int64)]:
        array = workspace.empty(shape, dtype)
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.flags.carray
        assert address(array) % 64 == 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (7,), (2, 3, 4)])
def test_small_arrays_are_ordinary(shape):
    before = workspace.statistics()
    array = workspace.empty(shape)
    assert array.shape == shape
    assert workspace.statistics() == before


def test_negative_sizes_are_refused():
    before = workspace.statistics()
    for shape in (-1, 3), (-1000, -1000):
        with pytest.raises(ValueError, match="negative"):
            workspace.empty(shape)
    assert workspace.statistics() == before


def test_more_than_there_is_raises_memory_error():
    with pytest.raises(MemoryError):
        workspace.empty((1 << 60,))


def test_memory_comes_back_when_the_array_dies():
    first = workspace.empty(BIG)
    where = address(first)
    del first
    assert address(workspace.empty(BIG)) == where


@pytest.mark.parametrize(
    "view_of",
    [
        lambda a: a[1:],
        lambda a: a.reshape(-1)[5:50],
        lambda a: a.T[::2][3:].reshape(-1, 2, 2)[0],
        lambda a: a.view(np.uint8)[0, :4],
        lambda a: memoryview(a)[1:],
        lambda a: np.asarray(memoryview(a))[2],
        lambda a: np.lib.stride_tricks.as_strided(a, (2, 2), (4, 4)),
        lambda a: np.frombuffer(a.reshape(-1)[7:], np.float32),
    ],
)
def test_a_view_of_any_kind_keeps_the_memory(view_of):
    array = workspace.empty(BIG)
    array[...] = np.arange(array.size).reshape(BIG)
    view = view_of(array)
    before = np.array(view)
    del array
    gc.collect()
    others = [workspace.empty(BIG) for _ in range(3)]
    for other in others:
        other.fill(-1)
    np.testing.assert_array_equal(np.array(view), before)
    del view


@pytest.mark.parametrize("shape", [(SMALL,), BIG])
def test_the_tape_knows_a_view_of_a_result(shape):
    array, other = workspace.empty(shape), workspace.empty(shape)
    assert tape.owner_of(array.reshape(-1)[3:]) == tape.owner_of(array) != tape.owner_of(other)


def test_logits_that_are_kept_stay_over_three_steps():
    def step(i):
        hidden = workspace.empty(BIG)
        hidden.fill(i)
        logits = workspace.empty(BIG)
        np.multiply(hidden, 2, out=logits)
        return logits

    kept = [step(i) for i in range(3)]
    for i, logits in enumerate(kept):
        assert (logits == 2 * i).all()
    assert workspace.statistics().lent == 3 * 4 * SMALL


def test_exceptions_do_not_lose_memory():
    def fails():
        array = workspace.empty(BIG)
        array[5] = 0  # out of bounds

    before = workspace.statistics().lent
    with pytest.raises(IndexError):
        fails()
    gc.collect()
    assert workspace.statistics().lent == before


def test_arrays_in_a_cycle_come_back_when_collected():
    ring = [workspace.empty(BIG)]
    ring.append(ring)
    before = workspace.statistics().lent
    del ring
    gc.collect()
    assert workspace.statistics().lent == before - 4 * SMALL


def test_threads_never_share_a_block():
    wrong = []

    def work(number):
        for turn in range(200):
            arrays = [workspace.empty(BIG) for _ in range(3)]
            for i, array in enumerate(arrays):
                array.fill(1000 * number + 3 * turn + i)
            for i, array in enumerate(arrays):
                if (array != 1000 * number + 3 * turn + i).any():
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert workspace.statistics().idle <= SLACK * 4 * 3 * 4 * SMALL


def test_a_finaliser_inside_the_pool_does_not_wait_for_itself():
    array = workspace.empty(BIG)
    before = workspace.statistics().lent
    with workspace._pool.lock:  # as if the garbage collector ran while this thread held the lock
        del array
        assert len(workspace._pool.coming_back) == 1
    assert workspace.statistics().lent == before - 4 * SMALL


def test_pieces_never_overlap_and_holes_merge():
    pool, random, lent = MemoryPool(), np.random.default_rng(0), []
    for _ in range(2000):
        if random.random() < 0.52:
            lent.append(pool.lend(int(random.integers(1, 40 * SMALL))))
        elif lent:
            come_back(pool, lent.pop(random.integers(len(lent))))
        pool.statistics()
        assert pool.holes == sorted(pool.holes)
        assert pool.starting_at == {start: hole for hole in pool.holes for start in hole[1:2]}
        assert pool.ending_at == {end: hole for hole in pool.holes for end in hole[2:3]}
        assert all(end - start == room for room, start, end, _ in pool.holes)
        for segment in pool.segments:
            pieces = [(start, end) for start, end, s in lent if s is segment]
            holes = sorted((start, end) for _, start, end, s in pool.holes if s is segment)
            holes.append((segment.open, segment.end))
            borders = sorted(pieces + holes)
            assert borders[0][0] == segment.start
            assert segment.open <= segment.touched <= segment.end
            for (_, end), (start, _) in itertools.pairwise(borders):
                assert end == start  # no overlap, nothing lost
            for (_, end), (start, _) in itertools.pairwise(holes):
                assert end < start  # merged where they met
    assert len(lent) > 20
    assert len(pool.holes) > 5


def test_the_smallest_hole_is_taken_and_the_open_end_last():
    pool = MemoryPool()
    pieces = [pool.lend(n * SMALL) for n in (9, 1, 5, 1, 7, 1)]
    first = pieces[0][0]
    come_back(pool, *(pieces[i] for i in (0, 2, 4)))
    assert pool.lend(5 * SMALL)[:2] == (first + 10 * SMALL, first + 15 * SMALL)
    assert pool.lend(5 * SMALL)[0] == first + 16 * SMALL
    assert pool.lend(20 * SMALL)[0] == first + 24 * SMALL


def residual_step(factor, depth=4):
    """The lendings of a small ResNet's training step, `factor` * 64 KiB in its first layers."""
    kept = []
    for stage in range(4):
        size = factor * SMALL // 2**stage // 4
        kept += [workspace.empty((size,)) for _ in range(3 * depth)]
    gradient = None
    while kept:
        shape = kept.pop().shape
        masked, gradient = workspace.empty(shape), workspace.empty(shape)
    return masked, gradient


def test_the_same_step_again_takes_no_new_memory():
    residual_step(40)
    first = workspace.statistics()
    for _ in range(5):
        residual_step(40)
    later = workspace.statistics()
    assert later.mapped == first.mapped
    assert later.lent + later.idle == first.lent + first.idle
    assert later.given_back == first.given_back


def test_other_shapes_use_the_same_memory():
    for factor in (100, 72, 47, 24, 100):
        residual_step(factor)
        most = workspace.statistics().idle
    residual_step(100)
    assert workspace.statistics().idle == most


def test_what_a_big_phase_left_goes_back_during_a_small_one():
    pool = MemoryPool()
    come_back(pool, *[pool.lend(64 * SMALL) for _ in range(10)])
    assert pool.statistics().idle == 640 * SMALL
    kept = pool.lend(SMALL)
    for _ in range(3 * WINDOW):
        come_back(pool, pool.lend(SMALL))
    assert pool.statistics().idle <= SMALL
    assert kept[2] in pool.segments


def test_release_empties_the_pool_but_for_what_is_lent():
    first, second = workspace.empty(BIG), workspace.empty(BIG)
    second.fill(7)
    del first
    assert workspace.statistics().idle > 0
    workspace.release()
    assert (second == 7).all()
    del second
    workspace.release()
    assert workspace.statistics().idle == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_released_memory_leaves_the_process():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    kept = workspace.empty((1000, 1000))
    kept.fill(1)
    before = resident()
    array = workspace.empty((40 << 20,), np.uint8)
    array.fill(1)
    assert resident() > before + (30 << 20)
    del array
    workspace.release()
    assert resident() < before + (10 << 20)
    assert (kept == 1).all()


@pytest.mark.parametrize("method", ["_remove", "_insert", "_cut_open_end"])
def test_ctrl_c_within_the_lists_forgets_them(method, monkeypatch):
    """Memory that is lent stays whose it is, and what comes later is whole."""
    pool = MemoryPool()
    kept = [pool.lend(SMALL) for _ in range(6)]
    come_back(pool, kept[1], kept[3])
    original = getattr(MemoryPool, method)

    def interrupted(self, *arguments):
        original(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryPool, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        come_back(pool, kept[2])  # meets both holes
        pool.lend(SMALL)
        pool.lend(100 * SMALL)
    monkeypatch.undo()
    assert pool.statistics().lent == 0
    come_back(pool, kept[0])  # of a forgotten segment
    later = [pool.lend(SMALL) for _ in range(20)]
    addresses = sorted(start for start, _, _ in later)
    assert all(b - a >= SMALL for a, b in itertools.pairwise(addresses))
    assert pool.statistics().lent == 20 * SMALL


def test_no_two_arrays_share_a_page():
    assert workspace.GRAIN % mmap.PAGESIZE == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_has_memory_of_its_own():
    array = workspace.empty(BIG)
    array.fill(1)
    child = os.fork()
    if child == 0:
        array.fill(2)
        workspace.empty(BIG).fill(3)
        fine = (array == 2).all()
        del array  # from a segment that is not the child's
        workspace.empty(BIG)
        os._exit(0 if fine and workspace.statistics().lent == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (array == 1).all()
