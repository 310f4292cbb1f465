"""The weight gradient of any convolution, as a matrix product on gathered pixels.

Defined by `Backend.conv2d_weight_grad` of tinyft/backends/reference.py.

dweight = windows' @ dout, summed over all pixels: (R S C, pixels) @ (pixels, F). The windows are
gathered as in forward.py, 128 pixels at a time, and multiplied transposed by exchanging the
two strides of the register block; dout is packed into panels beside them.

A sum over threads would depend on their number. So the work is cut by the shape alone. Small
weights are one piece. Of large ones an item has a tap and at most 256 channels and 256 filters: the
sums (256 KiB) stay in L2 beside the pixels, and each number that is gathered or packed is used 256
times. Where that gives four items or fewer, the pixels are cut into *parts*, with sums of their own
that are added in order at the end.

The next 128 pixels of dout are fetched while these are multiplied, and those of x where it is read
in order, in a 1x1 convolution with stride 1.
"""

from __future__ import annotations

from numpy import ndarray as Array

from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.codegen.simd import LANES, PANEL, REST_ROWS
from tinyft.backends.cpu.codegen.vectors import seen_from
from tinyft.backends.cpu.conv.gemm import (
    copy_to_panels,
    multiply_ahead,
    row_apart,
    sum_parts,
)
from tinyft.backends.cpu.conv.implicit_gemm.forward import Taps, gather, window_taps
from tinyft.backends.cpu.conv.layer import round_up
from tinyft.backends.cpu.runtime import threads
from tinyft.backends.cpu.runtime.work_stealing import next_item

# Per block. 96 gave an unlucky pitch (Zen 4: 15 ms instead of 10.5); 128 to 256 are equal.
PIXELS = 128
FEW_PANELS = 8  # of dout may lie a power of 2 apart; the lines of more do not fit one set of L1
SMALL = 100_000  # weights whose sums stay in L2
MOST_CHANNELS = 256  # channels and filters of an item, at most
ITEMS = 8  # at most, where pixels are cut: equal shares for 2 or 4 threads


@kernel
def multiply_windows_transposed(
    share, work, x, tap_rows, tap_columns, run, stride, dout, parts, taps, channels, filters,
    sums, size, sums_pitch, pitch, panel_rows,
):  # fmt: skip
    """sums[part] = windows' @ dout over the part's pixels. An item is one part, `taps` taps,
    `channels` channels and `filters` filters.
    """
    C, (N, P, Q, F) = x.shape[3], dout.shape
    total = N * P * Q
    tap_groups = (tap_rows.size + taps - 1) // taps
    channel_groups = (run + channels - 1) // channels
    filter_groups = (F + filters - 1) // filters
    in_order = tap_rows.size == stride == 1  # the pixels of x
    x_apart, dout_apart = C if channels < C else 0, F if filters < F else 0
    packed = PIXELS * pitch  # where in `work` the panels of dout are
    items = parts * tap_groups * channel_groups * filter_groups
    item = next_item(share, items)
    while item < items:
        group, filter_group = divmod(item, filter_groups)
        group, channel_group = divmod(group, channel_groups)
        part, tap_group = divmod(group, tap_groups)
        first_tap, first_channel = tap_group * taps, channel_group * channels
        first_filter = filter_group * filters
        last_tap = min(tap_rows.size, first_tap + taps)
        count, filter_count = min(channels, run - first_channel), min(filters, F - first_filter)
        rows = ((last_tap - first_tap) * count + REST_ROWS - 1) // REST_ROWS * REST_ROWS
        to = part * size + (first_tap * run + first_channel) * sums_pitch + first_filter
        start, stop = part * total // parts, (part + 1) * total // parts
        for block in range(start, stop, PIXELS):
            pixels = min(PIXELS, stop - block)
            for i in range(pixels):
                picture, place = divmod(block + i, P * Q)
                row, column = divmod(place, Q)
                gather(
                    x, picture, row * stride, column * stride, tap_rows, tap_columns, first_tap,
                    last_tap, first_channel, count, work, i * pitch,
                )  # fmt: skip
                source = (block + i) * F + first_filter
                copy_to_panels(dout, source, filter_count, work, packed, i, panel_rows)
            ahead_x, ahead_dout = 0, 0
            following = block + PIXELS
            if following < stop:
                if in_order:
                    ahead_x = seen_from(work, 0, x, following * C + first_channel)
                ahead_dout = seen_from(work, packed, dout, following * F + first_filter)
            multiply_ahead(
                work, 0, 1, pitch, work, packed, panel_rows, 0,
                sums, to, sums_pitch, rows, filter_count, pixels, block - start,
                ahead_x, ahead_dout, x_apart, dout_apart,
            )  # fmt: skip
        item = next_item(share, items)


def weight_grad(dout: Array, x: Array, dweight: Array, stride: int, padding: int) -> None:
    """dweight (R, S, C, F) from dout (N, P, Q, F), x (N, H, W, C); C and F multiples of LANES."""
    R, S, C, _ = dweight.shape
    sum_windows(dout, x, window_taps(R, S, padding), C, stride, dweight)


def sum_windows(dout: Array, x: Array, taps: Taps, run: int, stride: int, dweight: Array) -> None:
    """The same for any taps, each of `run` floats."""
    F, steps = dweight.shape[3], taps.numbers.size * run
    total = dout.size // F
    taps_per_item, channels, filters = taps.numbers.size, run, F
    if steps * F > SMALL and run % LANES == 0:
        taps_per_item, channels, filters = 1, min(run, MOST_CHANNELS), min(F, MOST_CHANNELS)
    items = -(-taps.numbers.size // taps_per_item) * -(-run // channels) * -(-F // filters)
    parts = max(1, min(ITEMS // items, total // 256))
    pitch = round_up(taps_per_item * channels, 16) + 16
    sums_pitch = row_apart(F)
    size = round_up(steps, REST_ROWS) * sums_pitch
    direct = parts == 1 and size == steps * F
    sums = dweight if direct else threads.scratch("parts", parts * size)
    panel_rows = PIXELS if filters <= FEW_PANELS * PANEL else PIXELS + 1
    threads.run_with_scratch(
        PIXELS * pitch + panel_rows * filters + 4 * LANES, multiply_windows_transposed, x,
        taps.rows, taps.columns, run, stride, dout, parts, taps_per_item, channels, filters,
        sums.reshape(-1), size, sums_pitch, pitch, panel_rows,
    )  # fmt: skip
    if not direct:
        threads.run(sum_parts, sums, parts, size, sums_pitch, steps, F, dweight.reshape(-1))
