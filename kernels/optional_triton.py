"""`triton` and `tl`: the real ones where Triton is installed (Linux), else stand-ins that let a kernel's file be imported.

Without Triton every op runs its PyTorch reference; the stand-in `triton.jit` leaves the kernel as a plain function that
nothing calls.
"""

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any


def _jit(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda decorated: decorated


triton: Any = SimpleNamespace(jit=_jit)
tl: Any = SimpleNamespace(constexpr=lambda value: value)
HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    triton, tl = import_module("triton"), import_module("triton.language")
