"""The contract of ops and kernels, and gradient checks, for tests of your own."""

from tinyft.lazy import looked_up_in

_HOME = {
    "KERNEL_CASES": "kernel_cases",
    "KernelCase": "kernel_cases",
    **dict.fromkeys(["OP_CASES", "REFUSALS", "OpCase", "Refusal"], "op_cases"),
    **dict.fromkeys(["ContractError", "check_backend", "check_kernel", "check_op"], "contract"),
    **dict.fromkeys(
        ["check_function", "check_refusal", "close_enough", "layouts", "rounding_spread"],
        "contract",
    ),
}

__all__ = [*_HOME]
__getattr__ = looked_up_in(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
