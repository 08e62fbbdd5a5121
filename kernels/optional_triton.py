"""`triton` and `tl`: the real ones where Triton is installed (Linux), else stand-ins that let a kernel's file be imported.

Without Triton every op runs its PyTorch reference; the stand-in `triton.jit` leaves the kernel as a plain function that
nothing calls.
"""

from types import SimpleNamespace
from typing import Any

triton: Any
tl: Any
try:
    import triton
    import triton.language as tl
except ImportError:
    triton = SimpleNamespace(jit=lambda function: function)
    tl = SimpleNamespace(constexpr=None)
    HAS_TRITON = False
else:
    HAS_TRITON = True
