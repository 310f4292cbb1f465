"""Two patterns of vector code, written out by Python loops: see simd.py for what LLVM code is.

`make_register_block(12, 2)` gives the innermost loop of every matrix product of this folder. Its
machine code is 24 multiply-adds, 2 loads, 12 loads that spread a number over a register, and 4 to
5 instructions of bookkeeping per k; nothing is stored until k is done.

Left alone, LLVM computes the addresses of 12 rows of A each from the one before. That is a chain of
12 additions, as long as the 12 cycles of the multiply-adds and partly on the same units. So every
fourth row has a pointer of its own, from which an instruction reaches 1, 2, 3 rows further, and
LLVM is not told that these pointers belong together: 3 to 6 % of most layers (Intel Xeon). A turn
of the loop makes four steps: 3 to 8 % of a product in short pieces (conv/gemm.py) there.

`make_two_sided_transform((left, right))` gives straight-line code: the matrices are known when the
code is written, so a coefficient of 0 costs no instruction, 1 an addition, and two rows that differ
in signs only share their halves. (Of the largest, which Winograd with stride 2 has, it writes two
loops over lines instead.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from tinyft.backends.cpu.codegen.simd import (
    ADDRESS,
    FLOAT,
    FUSE,
    INT,
    INT64,
    LANES,
    LINE,
    REGISTER,
    instruction,
    write_constant,
    write_fma,
    write_load,
    write_opaque,
    write_prefetch,
    write_spread,
    write_store,
)

# ------------------------------------------------------------------------------- 1: register block


GROUP = 4  # rows of A that one pointer reaches


def make_register_block(
    rows: int,
    registers: int,
    *,
    ahead: bool = False,
    unroll: int = 1,
    multiply_add: Callable = write_fma,
):
    """The innermost loop of a matrix product, with rows x registers sums in registers.

    block(a, a_offset, a_row, a_step, b, b_offset, c, c_offset, c_row, steps, accumulate)

    c[i, j] (+)= sum over k < steps of a[i, k] * b[k, j]   for i < rows, j < registers * LANES

    a[i, k] is at a_offset + i * a_row + k * a_step: with the two exchanged it multiplies by the
    transposed matrix. b is packed: row k follows row k - 1 directly. c[i, j] is at c_offset + i *
    c_row + j. `accumulate` 0 overwrites c; otherwise the sums are added to it at the end, since a
    long sum that is made in pieces is more exact than one that goes on from c. steps >= 1.

    With `ahead`, four more arguments follow: ahead_a, step_a, ahead_b, step_b. At each step lines
    are fetched into the L2 cache: at a + ahead_a + k * step_a, and a row at b + ahead_b + k *
    step_b. With `unroll`, a turn of the loop makes that many steps, and a second loop the rest.
    `multiply_add` writes x * y + z for three registers; bf16.py has another one.
    """
    block_of_c = [(i, j) for i in range(rows) for j in range(registers)]
    groups = range(0, rows, GROUP)

    def write(builder, a, a_row, a_step, b, c, c_row, steps, accumulate, *distances):
        within = [builder.mul(a_row, INT64(i)) for i in range(GROUP)]
        c_row_at = [builder.gep(c, [builder.mul(c_row, INT64(i))]) for i in range(rows)]
        c_at = {(i, j): builder.gep(c_row_at[i], [INT64(j * LANES)]) for i, j in block_of_c}
        pointers = {f"a {i}": builder.gep(a, [builder.mul(a_row, INT64(i))]) for i in groups}
        moves = {f"a {i}": a_step for i in groups}  # by how much, at each step
        pointers["b"], moves["b"] = b, INT64(registers * LANES)
        if ahead:
            ahead_a, moves["next a"], ahead_b, moves["next b"] = distances
            pointers |= {"next a": builder.gep(a, [ahead_a]), "next b": builder.gep(b, [ahead_b])}

        def step(now: dict) -> dict:
            """24 multiply-adds with 12 x 2 registers: all that changes from k to k + 1."""
            now = now | {f"a {i}": write_opaque(builder, now[f"a {i}"]) for i in groups}
            b_at = [builder.gep(now["b"], [INT64(j * LANES)]) for j in range(registers)]
            b_registers = [write_load(builder, place) for place in b_at]
            if ahead:
                write_prefetch(builder, now["next a"], level=2)
                for place in range(0, registers * LANES, LINE):
                    line = builder.gep(now["next b"], [INT64(place)])
                    write_prefetch(builder, line, level=2)
            for i in range(rows):
                a_at = builder.gep(now[f"a {i // GROUP * GROUP}"], [within[i % GROUP]])
                a_number = write_spread(builder, builder.load(a_at))
                for j in range(registers):
                    now[i, j] = multiply_add(builder, a_number, b_registers[j], now[i, j])
            return now | {name: builder.gep(now[name], [move]) for name, move in moves.items()}

        k, now = INT64(0), pointers | dict.fromkeys(block_of_c, write_constant(0))
        if unroll > 1:
            k, now = _write_loop(builder, k, steps, unroll, now, step)
        _, now = _write_loop(builder, k, steps, 1, now, step)
        _store_sums(builder, {at: now[at] for at in block_of_c}, c_at, accumulate)

    write.__name__ = "register_block"
    parameters = (ADDRESS, INT, INT, ADDRESS, ADDRESS, INT, INT, INT)
    return instruction(types.void, *parameters, *((INT, INT, INT, INT) if ahead else ()))(write)


def _write_loop(builder, k, steps, unroll: int, values: dict, step) -> tuple:
    """Write `while k + unroll <= steps`, with `unroll` times `step`, which takes and returns the
    values that change. -> k and the values behind the loop
    """
    before = builder.block
    head, turn, after = (builder.append_basic_block(name) for name in ("head", "turn", "after"))
    builder.branch(head)

    builder.position_at_end(head)
    k_now = builder.phi(k.type)
    now = {name: builder.phi(value.type) for name, value in values.items()}
    k_next = builder.add(k_now, INT64(unroll))
    builder.cbranch(builder.icmp_signed("<=", k_next, steps), turn, after)

    builder.position_at_end(turn)
    new = now
    for _ in range(unroll):
        new = step(new)
    builder.branch(head)

    k_now.add_incoming(k, before)
    k_now.add_incoming(k_next, turn)
    for name, phi in now.items():
        phi.add_incoming(values[name], before)
        phi.add_incoming(new[name], turn)
    builder.position_at_end(after)
    return k_now, now


def _store_sums(builder, sums, places, accumulate) -> None:
    """Store the sums behind the loop, or, if `accumulate` is not 0, add them to what is there."""
    finished = builder.block
    add, store = (builder.append_basic_block(name) for name in ("add", "store"))
    builder.cbranch(builder.icmp_signed("!=", accumulate, INT64(0)), add, store)
    builder.position_at_end(add)
    totals = {
        at: builder.fadd(write_load(builder, places[at]), sums[at], flags=FUSE) for at in sums
    }
    builder.branch(store)
    builder.position_at_end(store)
    results = {at: builder.phi(REGISTER) for at in sums}
    for at, result in results.items():
        result.add_incoming(sums[at], finished)
        result.add_incoming(totals[at], add)
    for at, result in results.items():
        write_store(builder, result, places[at])


# -------------------------------------------------------------------------- 2: two-sided transforms


def _combine(builder, coefficients, vectors):
    """sum of coefficient * vector with as few instructions as possible; None if all are zero."""
    terms = [(c, x) for c, x in zip(coefficients, vectors, strict=True) if c != 0 and x is not None]
    if not terms:
        return None
    terms.sort(key=lambda term: (abs(term[0]) != 1, term[0] < 0))  # start from a +1 if there is one
    coefficient, total = terms[0]
    if coefficient != 1:
        total = builder.fmul(write_constant(coefficient), total, flags=FUSE)
    for coefficient, x in terms[1:]:
        if abs(coefficient) == 1:
            add_or_subtract = builder.fadd if coefficient > 0 else builder.fsub
            total = add_or_subtract(total, x, flags=FUSE)
        else:
            total = write_fma(builder, write_constant(coefficient), x, total)
    return total


def _mirror(matrix, i: int, taken: set):
    """The row j that is row i with the signs of some columns changed, if sharing pays: then row i
    is even + odd and row j is even - odd. (Winograd's rows for the points +p and -p.)
    """
    for j in range(i + 1, len(matrix)):
        even, odd = (matrix[i] + matrix[j]) / 2, (matrix[i] - matrix[j]) / 2
        disjoint = not ((even != 0) & (odd != 0)).any()
        shares = even.any() and odd.any() and (even != 0).sum() + (odd != 0).sum() >= 3
        if j not in taken and disjoint and shares:
            return j, even, odd
    return None


def _apply(builder, matrix, vectors):
    """matrix @ vectors; None stands for a vector of zeros."""
    if all(x is None for x in vectors):
        return [None] * len(matrix)
    out, taken = {}, set()
    for i in range(len(matrix)):
        if i in taken:
            continue
        mirror = _mirror(matrix, i, taken)
        if mirror is None:
            out[i] = _combine(builder, matrix[i], vectors)
        else:
            j, even, odd = mirror
            even, odd = _combine(builder, even, vectors), _combine(builder, odd, vectors)
            out[i] = builder.fadd(even, odd, flags=FUSE)
            out[j] = builder.fsub(even, odd, flags=FUSE)
            taken.add(j)
    return [out[i] for i in range(len(matrix))]


class _Squares(NamedTuple):
    """The arguments of a two-sided transform: pointers, and steps from row to row and column to
    column. From `bias` on only with an epilogue, whose results are at least `lowest`.
    """

    x: Any
    x_row: Any
    x_column: Any
    y: Any
    y_row: Any
    y_column: Any
    bias: Any = None
    residual: Any = None
    residual_row: Any = None
    residual_column: Any = None
    lowest: Any = None


def _at(builder, start, step, i):
    """A pointer to the row, column or element that is i steps from another."""
    return builder.gep(start, [builder.mul(step, i)])


def _left_times_column(builder, left, squares: _Squares, j):
    """left @ column j of x. What meets only zeros is not read."""
    column, x = [None] * left.shape[1], _at(builder, squares.x, squares.x_column, j)
    for i in np.flatnonzero(left.any(axis=0)):
        column[i] = write_load(builder, _at(builder, x, squares.x_row, INT64(int(i))))
    return _apply(builder, left, column)


def _epilogue_of_row(builder, squares: _Squares, i) -> Callable:
    """A function of an element's column and value in row i, which gives what is stored."""
    bias, lowest = write_load(builder, squares.bias), write_spread(builder, squares.lowest)
    residual = _at(builder, squares.residual, squares.residual_row, i)

    def finish(j: int, value):
        added = write_load(builder, _at(builder, residual, squares.residual_column, INT64(j)))
        value = builder.fadd(value, bias, flags=FUSE)
        value = builder.fadd(value, added, flags=FUSE)
        below = builder.fcmp_ordered("<", value, lowest)  # false for NaN
        return builder.select(below, lowest, value)

    return finish


def _store_row(builder, right, row, squares: _Squares, i) -> None:
    """Row i of y = right @ row i of left x, and what the epilogue adds. What is always zero is not
    written.
    """
    finish = _epilogue_of_row(builder, squares, i) if squares.bias is not None else None
    y = _at(builder, squares.y, squares.y_row, i)
    for j, value in enumerate(_apply(builder, right, row)):
        if value is None:
            continue
        if finish:
            value = finish(j, value)
        write_store(builder, value, _at(builder, y, squares.y_column, INT64(j)))


def _cases(builder, number, choices):
    """Yield each different choice, in a block that runs if `number` is its place."""
    after = builder.append_basic_block("after")
    switch = builder.switch(number, after)
    for choice in {id(choice): choice for choice in choices}.values():
        block = builder.append_basic_block("case")
        for case, other in enumerate(choices):
            if other is choice:
                switch.add_case(INT64(case), block)
        builder.position_at_end(block)
        yield choice
        builder.branch(after)
    builder.position_at_end(after)


def _write_out(builder, number, sides, squares: _Squares) -> None:
    """y = left x right', element by element."""
    for left, right in _cases(builder, number, sides):
        columns = [None] * right.shape[1]
        for j in np.flatnonzero(right.any(axis=0)):
            columns[j] = _left_times_column(builder, left, squares, INT64(int(j)))
        for i in range(len(left)):
            row = [None if column is None else column[i] for column in columns]
            _store_row(builder, right, row, squares, INT64(i))


@contextlib.contextmanager
def _each(builder, count) -> Iterator:
    """Write `for i in range(count)`, for positive counts, with what the block writes."""
    before = builder.block
    turn, after = (builder.append_basic_block(name) for name in ("turn", "after"))
    builder.branch(turn)
    builder.position_at_end(turn)
    i = builder.phi(count.type)
    yield i
    i_next = builder.add(i, INT64(1))
    i.add_incoming(INT64(0), before)
    i.add_incoming(i_next, builder.block)
    builder.cbranch(builder.icmp_signed("<", i_next, count), turn, after)
    builder.position_at_end(after)


def _write_loops(builder, number, sides, squares: _Squares) -> None:
    """The same by a loop over the columns of x, and one over the rows of left x, on the stack."""
    lefts, rights = zip(*sides, strict=True)
    columns = rights[0].shape[1]
    square = ir.ArrayType(ir.ArrayType(REGISTER, columns), max(len(left) for left in lefts))
    with builder.goto_entry_block():
        left_x = builder.alloca(square)
    rows = INT64(len(lefts[0]))
    for case, left in enumerate(lefts):
        is_it = builder.icmp_signed("==", number, INT64(case))
        rows = builder.select(is_it, INT64(len(left)), rows)
    for left in _cases(builder, number, lefts):
        with _each(builder, INT64(columns)) as column:
            for i, value in enumerate(_left_times_column(builder, left, squares, column)):
                place = builder.gep(left_x, [INT64(0), INT64(i), column])
                builder.store(write_constant(0) if value is None else value, place)
    for right in _cases(builder, number, rights):
        with _each(builder, rows) as i:
            places = [builder.gep(left_x, [INT64(0), i, INT64(j)]) for j in range(columns)]
            row = [builder.load(place) for place in places]
            _store_row(builder, right, row, squares, i)


def make_two_sided_transform(*sides, epilogue: bool = False, loops: bool = False):
    """y = left x right', where each element of the matrices x and y is one Vector.

    transform(number, x, x_offset, x_row, x_column, y, y_offset, y_row, y_column)

    sides: pairs (left, right) of arrays; `number` says which. What meets only zeros of a matrix is
    not read, and what is always zero is not written.

    With epilogue, more arguments follow: (bias, bias_offset, residual, residual_offset,
    residual_row, residual_column, lowest), and y becomes max(y + bias + residual, lowest), NaN
    staying NaN.

    With `loops`, two loops over lines take the place of long straight code: for large squares,
    whose elements do not fit the registers anyway, and which LLVM would compile for seconds. Then
    what is zero because of a row of `left` is written, and columns that meet zeros are read.
    """
    pairs = [tuple(np.asarray(matrix, np.float64) for matrix in pair) for pair in sides]

    def write(builder, number, *values):
        (_write_loops if loops else _write_out)(builder, number, pairs, _Squares(*values))

    parameters = (INT, ADDRESS, INT, INT, ADDRESS, INT, INT)
    more = (ADDRESS, ADDRESS, INT, INT, FLOAT) if epilogue else ()
    return instruction(types.void, *parameters, *more)(write)
