"""The ledger's file: on a disk that takes no more, after kills, and with bytes that are wrong."""

from __future__ import annotations

import errno
import io
import json
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_data, small_learner
from tests.inspection.moments import AfterStep
from tinyft.errors import RunError
from tinyft.finetune.run.folder import Run
from tinyft.finetune.run.resume import resume
from tinyft.inspection.ledger import file as ledger_file
from tinyft.inspection.ledger import reading as ledger_reading
from tinyft.inspection.ledger.file import LedgerFile, Table
from tinyft.inspection.ledger.reading import LedgerReading


class FullDisk(io.FileIO):
    """A disk on which somebody else takes the last bytes, at a moment of the test's choice."""

    is_full = False

    def write(self, data):
        if not FullDisk.is_full:
            return super().write(data)
        if len(data) > 40:  # the system takes a part first
            return super().write(data[:40])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 5])  # within an epoch, and at its end
def test_a_run_goes_on_with_its_whole_ledger_once_there_is_space(tmp_path, monkeypatch, step):
    def fill(learner, record):
        FullDisk.is_full = record.step == step

    monkeypatch.setattr(
        ledger_file, "open", lambda path, mode, buffering: FullDisk(path, mode), raising=False
    )
    learner, run, path = small_learner(), Run.create(tmp_path / "full"), tmp_path / "full"
    observers = [AfterStep(fill), ft.Ledger(path), run]
    with pytest.raises(OSError, match="No space left") as caught:
        learner.execute(learner.plan(1), observers=observers)
    assert caught.value.filename == str(path / "ledger.bin")
    left = ft.Ledger.read(path)
    assert left.steps["step"].tolist() == list(range(step))
    assert "bytes of a record that was cut off are left out" in str(left)
    FullDisk.is_full = False
    learner, plan, run, start, _ = resume(path, small_data())
    assert start == 3  # the end of an epoch
    learner.execute(plan, observers=[ft.Ledger(path), run], start=start)
    whole = ft.Ledger()
    learner = small_learner()
    learner.execute(learner.plan(1), observers=[whole])
    found = ft.Ledger.read(path)
    for name, rows in whole.reading.tables.items():
        np.testing.assert_array_equal(found.tables[name], rows, name)


# ------------------------------------------------------------------------------------ a small file


def layout(description) -> dict[str, list[Table]]:
    seen = Table("seen", (2,), "<f4")
    return {
        "begin": [seen],
        "step": [Table("steps", (2,)), Table("ids", (3,), "<i8")],
        "epoch": [Table("epochs", (1,)), seen],
    }


def a_step(n: int) -> dict[str, object]:
    return {"steps": [n, np.nan], "ids": np.arange(n, n + 3)}


def steps_file(path: Path | None, steps: int = 0) -> LedgerFile:
    """Steps 0 to `steps` - 1, and an epoch after each fifth of them."""
    file = LedgerFile(path, layout, {"name": "small"})
    file.append("begin", seen=[0, 0])
    for n in range(steps):
        file.append("step", **a_step(n))
        if n % 5 == 4:
            file.append("epoch", epochs=[n], seen=[n, n])
    return file


def steps_in(contents: ledger_file.Contents) -> list[float]:
    """Which steps there are, all of whose rows are as they were written."""
    tables = contents.tables
    for n, ids in zip(tables["steps"][:, 0], tables["ids"], strict=True):
        assert ids.tolist() == [n, n + 1, n + 2]
    return tables["steps"][:, 0].tolist()


@pytest.mark.slow
def test_no_kill_loses_a_step(tmp_path):
    """Every state between two writes, and every part of a write."""
    path = tmp_path / "ledger.bin"
    file, ends, whole_steps = steps_file(path), [], []
    for n in range(23):
        whole_steps.append(path.stat().st_size)
        file.append("step", **a_step(n))
        ends.append(path.stat().st_size)
        if n % 5 == 4:
            file.append("epoch", epochs=[n], seen=[n, n])
            whole_steps.append(path.stat().st_size)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 10
    states = {head, *ends, *whole_steps}
    for size in range(len(whole) + 1):
        if size < head:
            with pytest.raises(RunError, match="is damaged or no ledger"):
                ledger_file.parse(whole[:size], layout)
            continue
        found = ledger_file.parse(whole[:size], layout)
        assert steps_in(found) == list(range(sum(size >= end for end in ends)))
        assert (found.unfinished == 0) == (size in states)
    epochs, seen = found.tables["epochs"], found.tables["seen"]
    assert epochs[:, 0].tolist() == [4, 9, 14, 19] and (seen[1:] == epochs).all()


@pytest.mark.slow
def test_no_bit_changes_unnoticed():
    whole, told, dropped = steps_file(None, 6).file.getvalue(), 0, 0
    last = len(whole) - SIZE  # where the last step begins
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = ledger_file.parse(bytes(damaged), layout)
        except RunError as error:
            assert "damaged" in str(error)
            told += 1
        else:
            assert bit // 8 >= last and steps_in(found) == [0, 1, 2, 3, 4] and found.unfinished
            dropped += 1
    assert told + dropped == 8 * len(whole) and dropped == 8 * (len(whole) - last - 8)


SIZE = 8 + 16 + 24 + 4  # of the small file's record of a step


def test_damage_is_told_by_its_step_and_what_is_before_it_stays_readable():
    whole = bytearray(steps_file(None, 4).file.getvalue())
    whole[-2 * SIZE + 20] ^= 4
    with pytest.raises(RunError, match=r"the record behind step 1, from byte \d+ of \d"):
        ledger_file.parse(bytes(whole), layout)
    found = ledger_file.parse(bytes(whole), layout, damaged=True)
    assert steps_in(found) == [0, 1] and "step 1" in found.damage


def test_records_that_are_lost_or_exchanged_are_noticed():
    whole = steps_file(None, 4).file.getvalue()
    start = len(whole) - 4 * SIZE
    records = [whole[at : at + SIZE] for at in range(start, len(whole), SIZE)]
    for order in ([0, 2, 3], [0, 2, 1, 3], [0, 1, 1, 2, 3]):
        with pytest.raises(RunError, match="the record behind step"):
            ledger_file.parse(whole[:start] + b"".join(records[i] for i in order), layout)


def test_a_file_that_is_longer_than_what_was_written_ends_there():
    """A crash of the system may leave zeros, in place of a record's end too."""
    whole = steps_file(None, 4).file.getvalue()
    for lost in (0, 30):
        found = ledger_file.parse(whole[: len(whole) - lost] + bytes(4096), layout)
        assert steps_in(found) == [0, 1, 2, 3][: 4 if lost == 0 else 3] and found.unfinished


def test_a_file_that_grows_is_read_at_any_time(tmp_path):
    file = steps_file(tmp_path / "ledger.bin")
    writer = threading.Thread(
        target=lambda: [file.append("step", **a_step(n)) for n in range(2000)]
    )
    writer.start()
    counts = [0]
    while counts[-1] < 2000:
        counts.append(len(steps_in(ledger_file.read(file.path, layout))))
    writer.join()
    assert counts == sorted(counts)


@pytest.mark.slow
def test_the_lines_of_the_docstring_read_a_ledger(tmp_path, monkeypatch):
    learner, whole = small_learner(), ft.Ledger(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    learner.execute(learner.plan(0), observers=[whole])
    lines = ledger_file.__doc__.partition("NumPy alone reads a ledger that is whole:\n\n")[2]
    lines = [line[4:] for line in lines.partition("\n\n")[0].splitlines()]
    monkeypatch.chdir(tmp_path)
    found = {"np": np, "json": json}
    exec("\n".join(lines), found)
    assert found["loss"] == whole.reading.steps["loss"].tolist()
    assert len(found["loss"]) == 3


# ---------------------------------------------------------------------------------- crafted bytes


def sealed(head: bytes, records: list[bytes]) -> bytes:
    """A file whose checksums are right."""
    crc = zlib.crc32(head)
    parts = [b"%s\n%08x\n" % (head, crc)]
    for record in records:
        crc = zlib.crc32(record, crc)
        parts += [record, crc.to_bytes(4, "little")]
    return b"".join(parts)


HEADS = [
    b"",
    b"{}",
    b"[" * 100_000,
    b"9" * 10_000,
    b'{"format": "tinyft-ledger"}',
    b'{"format": "tinyft-ledger", "version": 3, "description": {}}',
    b'{"format": "another", "version": 3}',
    b'{"format": "tinyft-ledger", "version": 4}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_a_head_that_is_no_ledgers_is_told(tmp_path, head):
    (tmp_path / "ledger.bin").write_bytes(sealed(head, []))
    with pytest.raises(RunError, match="is damaged or no ledger"):
        ft.Ledger.read(tmp_path)


CHANGES = {
    "channels": [[], [10**18], [-1], ["a"], 3, [0]],
    "batch_size": [10**12, -8, None, 0.5, [8]],
    "group_of": [[], [7], [[0]], "0"],
    "groups": ["abc", [], [1], None],
    "parameters": [[], ["x"] * 9, None],
    "phases": [[], "ab", [None]],
    "tensors": [None, ["x"] * 9],
    "optimizer": [None],
    "has_momentum": ["no"],
}


def look_at(book) -> None:
    """What a report does with a ledger."""
    _ = book.steps, book.layers, book.epochs, book.norm_drift, [str(p) for p in book.proofs]
    assert str(book) and book._repr_html_()


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[dict, list[bytes]]:
    """The head and the records of a small run's ledger."""
    path = tmp_path_factory.mktemp("ledgers")
    learner = small_learner(small_data(size=12))
    learner.execute(learner.plan(1), observers=[ft.Ledger(path)])
    head, _, data = (path / "ledger.bin").read_bytes().split(b"\n", 2)
    tables = ledger_reading.layout(json.loads(head)["description"])
    sizes = {n.encode(): ledger_file.record_dtype(of).itemsize + 12 for n, of in tables.items()}
    records = []
    while data:
        size = sizes[data[:8].rstrip(b"\0")]
        records.append(data[: size - 4])
        data = data[size:]
    return json.loads(head), records


@pytest.mark.slow
def test_a_description_of_another_ledger_is_told(parts):
    head, records = parts
    for name, values in CHANGES.items():
        for value in values:
            changed = head | {"description": head["description"] | {name: value}}
            whole = sealed(json.dumps(changed).encode(), records)
            with pytest.raises(RunError, match="is damaged"):
                LedgerReading.of(ledger_file.parse(whole, ledger_reading.layout))


@pytest.mark.slow
def test_crafted_records_do_no_harm(parts):
    """Their checksums are right, their numbers are not."""
    head, records = json.dumps(parts[0]).encode(), parts[1]
    draw, read = np.random.default_rng(0), 0
    for _ in range(100):
        crafted = [bytearray(record) for record in records]
        for _ in range(draw.integers(1, 20)):
            one = crafted[draw.integers(len(crafted))]
            one[draw.integers(8, len(one))] = draw.choice([0, 0x7F, 0xF0, 0xFF])
        if draw.random() < 0.3:
            draw.shuffle(crafted)
        if draw.random() < 0.3:  # a number that counts: of the step, the epoch, the phase
            of_step = next(one for one in crafted if one.startswith(b"step"))
            of_step[8:32] = draw.choice([np.nan, -1, 1e300, 2**63, 0.5], 3).tobytes()
        whole = sealed(head, crafted[: draw.integers(1, len(crafted) + 1)])
        with np.errstate(all="ignore"):
            try:
                look_at(LedgerReading.of(ledger_file.parse(whole, ledger_reading.layout)))
                read += 1
            except RunError as error:
                assert "damaged" in str(error)
    assert read > 10


@pytest.mark.slow
def test_reading_takes_memory_for_what_the_file_holds(tmp_path):
    """Also where a file has as many records as fit into it."""
    path = tmp_path / "ledger.bin"
    file = steps_file(path, 4000)
    size = path.stat().st_size
    tracemalloc.start()
    found = ledger_file.read(file.path, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(steps_in(found)) == 4000 and peak < 3 * size
