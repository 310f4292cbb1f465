"""The pickle machine: what it understands, what it refuses, and that it runs nothing."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import time
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
from torch_assembler import Call, Global, program, whole

from tinyft.errors import WeightsError
from tinyft.weights.torch.tensors import Inert
from tinyft.weights.torch.unpickler import unpickle


def read(data: bytes, ignore_unknown: bool = False):
    return unpickle(io.BytesIO(data), lambda identity: identity, ignore_unknown)


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [1.5, None, True, False], "c": ("x", (), (1,), (1, 2), (1, 2, 3), (1,) * 9)},
        {"negative": -5, "large": 2**70, "middling": 70000, "text": "é" * 300},
        [[], {}, [{}] * 3],
        OrderedDict(a=1, b=2),
    ],
)
def test_plain_values_come_back_as_pickle_reads_them(value):
    assert read(pickle.dumps(value, protocol=2)) == value


def test_ordered_dict_of_python_2():
    assert read(whole(Call("collections.OrderedDict", ([["a", 1], ["b", 2]],)))) == {"a": 1, "b": 2}


def test_a_state_dict_keeps_no_attributes():
    metadata = program({"_metadata": {"version": 1}})
    assert read(b"\x80\x02" + program(Call("collections.OrderedDict", ())) + metadata + b"b.") == {}


def test_companions_of_training_become_inert():
    value = {"args": __import__("argparse").Namespace(lr=0.1), "default": defaultdict(list, a=[1])}
    value["path"] = Path("x")
    content = read(pickle.dumps(value, protocol=2))
    assert content["args"] == Inert("argparse.Namespace")
    assert content["default"] == Inert("collections.defaultdict")
    assert isinstance(content["path"], Inert)


def test_what_no_state_dict_needs_is_left_out():
    itself = ([],)
    itself[0].append(itself)
    value = {"results": {(0, 1): 3.0, "a": 1, 2**70: 2}, "seed": 2**3000, "itself": itself}
    content = read(pickle.dumps(value, protocol=2))
    assert content["results"] == {"a": 1} and isinstance(content["seed"], Inert)
    assert content["itself"][0][0] is content["itself"]
    assert read(b"\x80\x02}]K\x01s.") == {}  # a list as a key, which Python cannot write


class Evil:
    """Would create a file if anybody unpickled it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("ignore_unknown", [False, True])
def test_nothing_is_executed(protocol, ignore_unknown, tmp_path):
    marker = tmp_path / "executed"
    data = pickle.dumps({"a": Evil(marker)}, protocol=protocol)
    try:
        content = read(data, ignore_unknown)
    except WeightsError as error:
        assert "system" in str(error) or "opcode" in str(error)
    else:
        assert ignore_unknown and content == {"a": Inert("posix.system")}
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"(S'touch {}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {}'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
    ],
)
def test_other_ways_to_import_are_refused_by_opcode(data, tmp_path):
    marker = tmp_path / "executed"
    with pytest.raises(WeightsError, match="uses the opcode"):
        read(data.replace(b"{}", bytes(marker)), ignore_unknown=True)
    assert not marker.exists()


def test_all_refused_names_are_listed_at_once():
    data = whole([Global("os.system"), Global("builtins.eval"), Global("collections.OrderedDict")])
    with pytest.raises(WeightsError, match=r"nothing was executed.*os\.system, builtins\.eval, "):
        read(data)


def test_a_pickled_model_has_its_own_message():
    with pytest.raises(WeightsError, match=r"whole pickled model.*state_dict"):
        read(whole([Global("torch.nn.modules.linear.Linear"), Global("os.system")]), True)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}",  # no STOP
        b"\x80\x02.",  # empty stack
        b"\x80\x02K\x01K\x02.",  # two values left
        b"\x80\x02h\x05.",  # a memo that was never written
        b"\x80\x02K\x01K\x01R.",  # calls a number
        b"\x80\x02e.",  # no mark
        b"\x80\x02K\x01(K\x02u.",  # items of a number
        b"\x80\x02}](K\x01es.",  # one value short
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of two gigabytes
    ],
)
def test_nonsense_is_damage(data):
    with pytest.raises(WeightsError, match="damaged"):
        read(data)


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        ("torch.Size", "a long text"),
        ("torch.Size", {1: 2}),
        ("torch.Size", (1,) * 9),
        ("collections.OrderedDict", {"ab": 1}),
    ],
)
def test_only_short_sequences_are_copied(function, argument):
    assert read(whole(Call("torch.Size", ((2, 3),)))) == (2, 3)
    with pytest.raises(WeightsError, match="damaged"):
        read(whole(Call(function, (argument,))))


def _nested_tuples(depth: int) -> bytes:
    return b"\x80\x02)" + b"\x85" * depth


BOMBS = {
    "memo index": b"\x80\x02Nr" + b"\xff\xff\xff\x7f" + b".",
    "nested tuples": _nested_tuples(400_000) + b".",
    "nested tuples as key": b"\x80\x02}" + _nested_tuples(400_000)[2:] + b"Ns.",
    "billion laughs": b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b".",
    "too many opcodes": b"\x80\x02](" + b"]" * 2_000_000 + b"e.",
    "one list for many calls": (
        b"\x80\x02](" + b"K\x01" * 100_000 + b"eq\x00"
        b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 10_000 + b"t."
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_cheap(bomb):
    start = time.perf_counter()
    with contextlib.suppress(WeightsError):
        read(BOMBS[bomb])
    assert time.perf_counter() - start < 10
