"""Which registers this CPU has, and how large a block of results is kept in them.

Numba compiles for the CPU it runs on unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES say otherwise, so
the same two variables decide here. (NUMBA_ENABLE_AVX=0 does not: each wide register is then several
narrow ones.)

Measured on an Intel Xeon (Sapphire Rapids, AVX-512, one core, product of matrices that fit L2;
GFLOP/s of a peak of 230) by rows x registers of the block: 8x2 191, 8x3 222, 6x4 206, 12x2 220,
14x2 229. On AMD Zen 4, 8x2 reached 98 % of the peak. 12x2 is taken because 12 rows and a rest of 4
divide what convolutions have; 14 do not.
"""

from __future__ import annotations

import platform
from typing import NamedTuple

import llvmlite.binding as llvm
from numba import config

# What LLVM's CPU names offer, for NUMBA_CPU_NAME without NUMBA_CPU_FEATURES. An unknown name gets
# the portable path, which is right everywhere.
AVX512_NAMES = ("skylake-avx512", "icelake-server", "sapphirerapids", "znver4", "znver5")
AVX2_NAMES = ("haswell", "broadwell", "skylake", "alderlake", "znver1", "znver2", "znver3")


class Blocking(NamedTuple):
    """lanes: floats per register; rows x registers: the block of results that stays in registers;
    rest: rows of the smaller block that takes what `rows` leaves over.
    """

    lanes: int
    rows: int
    registers: int
    rest: int


def has(feature: str) -> bool:
    """True if code compiled by Numba in this process may use this feature of LLVM's list.

    Every 64-bit ARM has NEON, also one that LLVM knows only as "generic", without any feature.
    """
    if feature == "neon" and platform.machine() in ("aarch64", "arm64"):
        return "-neon" not in (config.CPU_FEATURES or "").split(",")
    if config.CPU_FEATURES:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    if config.CPU_NAME and config.CPU_NAME not in (llvm.get_host_cpu_name(), "host"):
        names = {"avx512f": AVX512_NAMES, "avx2": (*AVX2_NAMES, *AVX512_NAMES)}
        return config.CPU_NAME in names.get(feature, ())
    try:
        return bool(llvm.get_host_cpu_features().get(feature))
    except RuntimeError:  # LLVM cannot tell on this system
        return False


def is_x86(triple: str | None = None) -> bool:
    """Whether LLVM's name for a machine, by default for this one, says so."""
    return (triple or llvm.get_process_triple()).startswith(("x86", "i686"))


def is_arm64(triple: str | None = None) -> bool:
    return (triple or llvm.get_process_triple()).startswith(("aarch64", "arm64"))


def blocking() -> Blocking:
    """The block for this CPU: rows x registers sums, `registers` numbers of B and one of A."""
    if has("avx512f"):
        return Blocking(lanes=16, rows=12, registers=2, rest=4)  # 27 of 32 registers
    if has("avx2") and has("fma"):
        return Blocking(lanes=8, rows=6, registers=2, rest=2)  # 15 of 16
    if has("neon"):
        return Blocking(lanes=4, rows=12, registers=2, rest=4)  # 27 of 32
    return Blocking(lanes=4, rows=6, registers=2, rest=2)  # SSE: 15 of 16
