"""Softmax attention without a mask, by whichever implementation is installed.

Shapes: B videos, N queries, L keys, H heads, E head dimension. Every backend takes (B, N, H, E) and (B, L, H, E).
PyTorch's own are called as the operators under `scaled_dot_product_attention`: that function falls back silently, and it
drops the log-sum-exp where no gradient is needed, with which cuDNN may run another kernel in a rollout than in its replay.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from vrlvr.errors import UserError

_HALVES = (torch.bfloat16, torch.float16)
_ANY_LATER = 1000

# The packages' functions: all take and give (B, N, H, E); some versions add the log-sum-exp to what they return.
_PACKAGES = {
    "flash3": ("flash_attn_interface", "flash_attn_func"),
    "flash4": ("flash_attn.cute", "flash_attn_func"),
    "flash2": ("flash_attn", "flash_attn_func"),
    "xformers": ("xformers.ops", "memory_efficient_attention"),
}
# Major compute capabilities on which forward and backward run. FlashAttention-4 has no backward below 9.
_CAPABILITIES = {
    "flash3": range(9, 10),
    "cudnn": range(8, _ANY_LATER),
    "flash4": range(9, 12),
    "flash2": range(8, _ANY_LATER),
    "xformers": range(7, _ANY_LATER),
    "flash": range(8, _ANY_LATER),
    "efficient": range(5, _ANY_LATER),
    "math": range(_ANY_LATER),
}
NAMES = tuple(_CAPABILITIES)
_DTYPES = dict.fromkeys(NAMES, _HALVES) | dict.fromkeys(("xformers", "efficient"), (*_HALVES, torch.float32))
# Of the kernels' backward: cuDNN's and FlashAttention-4's take more on some architectures only.
_MAX_HEAD_DIM = dict.fromkeys(NAMES, 256) | {"cudnn": 128, "flash4": 128}
# What `auto` prefers, by major compute capability; then _ALWAYS, by which everything can run.
_PREFERRED = {8: ("flash2",), 9: ("flash3", "cudnn", "flash4"), 10: ("flash4", "cudnn")}
_ALWAYS = ("flash", "efficient", "math")

_functions: dict[str, Callable | None] = {}


def _package(name: str) -> Callable | None:
    """The package's function; None where it is missing, broken, or was built for another PyTorch. Imported once."""
    if name not in _functions:
        module, function = _PACKAGES[name]
        try:
            _functions[name] = getattr(importlib.import_module(module), function, None)
        except Exception:  # whatever a package raises that does not fit its surroundings: the others do without it
            _functions[name] = None
    return _functions[name]


def _takes(name: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernels of a GPU backend take heads of this type and dimension."""
    if name == "math":
        return True
    return dtype in _DTYPES[name] and head_dim % 8 == 0 and head_dim <= _MAX_HEAD_DIM[name]


def available(device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> list[str]:
    """The backends that run here: installed, made for this GPU, and taking heads of this type and dimension.

    The meta device has all that take them, since it stands for any GPU.
    """
    if device.type == "cpu":
        return ["flash", "math"]
    if device.type == "meta":
        return [name for name in NAMES if _takes(name, dtype, head_dim)]
    if device.type != "cuda":
        return ["math"]
    major, _ = torch.cuda.get_device_capability(device)
    return [
        name
        for name in NAMES
        if major in _CAPABILITIES[name]
        and _takes(name, dtype, head_dim)
        and (name != "cudnn" or torch.backends.cudnn.is_available())
        and (name not in _PACKAGES or _package(name) is not None)
    ]


def choose(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> str:
    """The backend to use: `name` itself, or for `auto` the first of the architecture's order that is available.

    Raises UserError for a name that is unknown, or not available here.
    """
    if name != "auto" and name not in NAMES:
        raise UserError(f"attention={name!r} is no backend; use auto or one of {', '.join(NAMES)}")
    found = available(device, dtype, head_dim)
    if name == "auto":
        major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
        return next(backend for backend in (*_PREFERRED.get(major, ()), *_ALWAYS) if backend in found)
    if name not in found:
        raise UserError(
            f"attention={name!r} is not available on {device} for {dtype} heads of dimension {head_dim}; "
            f"use auto or one of {', '.join(found)}"
        )
    return name


def _by_torch(q_BHNE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, backend: str) -> Tensor:
    """(B, H, N, E), by the operator of PyTorch's backend. The log-sum-exp is always computed."""
    aten = torch.ops.aten
    if backend == "cudnn":
        return aten._scaled_dot_product_cudnn_attention(q_BHNE, k_BHLE, v_BHLE, None, True)[0]
    if backend == "efficient":
        return aten._scaled_dot_product_efficient_attention(q_BHNE, k_BHLE, v_BHLE, None, True)[0]
    if backend == "math":
        return aten._scaled_dot_product_attention_math(q_BHNE, k_BHLE, v_BHLE)[0]
    if q_BHNE.is_cpu:
        return aten._scaled_dot_product_flash_attention_for_cpu(q_BHNE, k_BHLE, v_BHLE)[0]
    return aten._scaled_dot_product_flash_attention(q_BHNE, k_BHLE, v_BHLE)[0]


def attend(q_BNHE: Tensor, k_BLHE: Tensor, v_BLHE: Tensor, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(E)) v, (B, N, H, E), differentiable, by a backend that `choose` returned.

    On the meta device a package is replaced by `flash`, which keeps the same for the backward: q, k, v, the output and the
    log-sum-exp. Raises UserError for heads that the backend cannot take.
    """
    native = q_BNHE.is_cpu and backend == "flash"  # PyTorch's CPU kernel takes any type and dimension
    if not native and not _takes(backend, q_BNHE.dtype, q_BNHE.shape[-1]):
        raise UserError(
            f"attention={backend!r} cannot take {q_BNHE.dtype} heads of dimension {q_BNHE.shape[-1]}; "
            "use attention=math, or bfloat16 and a head dimension that is a multiple of 8"
        )
    if backend in _PACKAGES and not q_BNHE.is_meta:
        function = _package(backend)
        assert function is not None, f"{backend} is not installed: take what `choose` returns"
        result = function(q_BNHE, k_BLHE, v_BLHE)
        return result[0] if isinstance(result, tuple) else result
    heads_BHNE = _by_torch(q_BNHE.transpose(1, 2), k_BLHE.transpose(1, 2), v_BLHE.transpose(1, 2), backend)
    return heads_BHNE.transpose(1, 2)
