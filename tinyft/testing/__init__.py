"""The contract of ops and kernels, and gradient checks, for tests of your own."""

from tinyft.lazy import looked_up_in

_HOME = dict.fromkeys(
    [
        "KERNEL_CASES",
        "OP_CASES",
        "REFUSALS",
        "ContractError",
        "KernelCase",
        "OpCase",
        "Refusal",
        "check_backend",
        "check_kernel",
        "check_op",
        "check_refusal",
        "close_enough",
        "layouts",
        "rounding_spread",
    ],
    "contract",
)

__all__ = [*_HOME]
__getattr__ = looked_up_in(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
