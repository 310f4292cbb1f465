"""The contract of ops and kernels, and gradient checks, for tests of your own."""

from typing import TYPE_CHECKING

from tinyft.lazy import looked_up_in

if TYPE_CHECKING:  # the same names for editors, which do not run the look-up
    from tinyft.testing.contract import ContractError as ContractError
    from tinyft.testing.contract import check_backend as check_backend
    from tinyft.testing.contract import check_function as check_function
    from tinyft.testing.contract import check_kernel as check_kernel
    from tinyft.testing.contract import check_op as check_op
    from tinyft.testing.contract import check_refusal as check_refusal
    from tinyft.testing.contract import close_enough as close_enough
    from tinyft.testing.contract import layouts as layouts
    from tinyft.testing.contract import rounding_spread as rounding_spread
    from tinyft.testing.kernel_cases import KERNEL_CASES as KERNEL_CASES
    from tinyft.testing.kernel_cases import KernelCase as KernelCase
    from tinyft.testing.op_cases import OP_CASES as OP_CASES
    from tinyft.testing.op_cases import REFUSALS as REFUSALS
    from tinyft.testing.op_cases import OpCase as OpCase
    from tinyft.testing.op_cases import Refusal as Refusal

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

if not TYPE_CHECKING:  # or every name would seem to be there
    __all__ = [*_HOME]
    __getattr__, __dir__ = looked_up_in(__name__, _HOME)
