"""What a training step needs of a device's memory, by running the model itself on the meta device: shapes, no data.

A step is forward and backward of one micro-batch over gradients that are already there, as from the second micro-batch
on. Counted is what PyTorch allocates; not what libraries take for themselves (the CUDA context, cuBLAS's workspace) nor
what the caching allocator loses by rounding, for which `choose_policy` leaves a margin.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vrlvr.errors import UserError
from vrlvr.models.recompute import POLICIES, Policy
from vrlvr_kernels import launch

GIB = 2**30

BuildModel = Callable[[int, Policy], nn.Module]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make within it: `live` now, `peak` at most.

    A storage is counted once, whatever views it has, until nothing holds it; those of the `known` tensors are not.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = list(known)  # held, so that no other storage takes their addresses
        self._addresses = {tensor.untyped_storage()._cdata for tensor in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._addresses:
            return
        self._addresses.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, address, size).atexit = False

    def _remove(self, address: int, size: int) -> None:
        self._addresses.remove(address)
        self.live -= size


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


def traced_peak(model: nn.Module, inputs: Sequence[Any]) -> int:
    """Peak bytes that forward and backward allocate beside parameters and gradients. All on the meta device."""
    for parameter in model.parameters():
        parameter.grad = None
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter, dtype=parameter.grad_dtype)
    with torch.no_grad():
        model(*inputs)  # tables that are made once and cached are not part of a step
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    with LiveBytes([*known, *(x for x in inputs if isinstance(x, Tensor))]) as memory:
        velocity = model(*inputs)
        velocity.backward(torch.empty_like(velocity))
    return memory.peak


def step_memory(
    build_model: BuildModel,
    inputs: Sequence[Any],
    num_layers: int,
    policy: Policy,
    implementation: launch.Implementation = "triton",
) -> StepMemory:
    """The memory of a step of the model that `build_model(num_layers, policy)` gives, called on `inputs`, by `MasterAdamW`.

    build_model: called on the meta device for one and for two blocks, from which all num_layers follow: they are alike.
    inputs: the arguments of the model, tensors on the meta device, of one micro-batch.
    implementation: of the fused operations, whose temporary tensors differ.
    """

    def measure(depth: int) -> StepMemory:
        with torch.device("meta"):
            model = build_model(depth, policy)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return StepMemory(
            parameters=sum(parameter.nbytes for parameter in model.parameters()),
            gradients=sum(4 * p.numel() for p in trained),
            optimizer=sum(
                (8 if p.dtype == torch.float32 else 12) * p.numel() for p in trained
            ),  # two moments, a master
            activations=traced_peak(model, inputs),
        )

    with launch.implementation(implementation):
        one, two = measure(1), measure(2)

    def extrapolate(name: str) -> int:
        first, second = getattr(one, name), getattr(two, name)
        return first + (num_layers - 1) * (second - first)

    return StepMemory(*(extrapolate(name) for name in ("parameters", "gradients", "optimizer", "activations")))


def choose_policy(
    build_model: BuildModel,
    inputs: Sequence[Any],
    num_layers: int,
    free_bytes: int,
    margin: float = 0.1,
    **options: Any,
) -> Policy:
    """The policy that recomputes least of those whose step fits in (1 - margin) of the free memory.

    free_bytes: on the device before the model is there. options: those of `step_memory`.
    Raises UserError if none fits.
    """
    for policy in POLICIES:
        needed = step_memory(build_model, inputs, num_layers, policy, **options)
        if needed.total <= (1 - margin) * free_bytes:
            return policy
    raise UserError(
        f"a training step needs {needed.total / GIB:.1f} GiB even with recompute=full (parameters "
        f"{needed.parameters / GIB:.1f}, gradients {needed.gradients / GIB:.1f}, optimizer {needed.optimizer / GIB:.1f}, "
        f"activations {needed.activations / GIB:.1f}) but {(1 - margin) * free_bytes / GIB:.1f} GiB may be used; "
        "use a smaller micro_batch, smaller videos, LoRA or a larger GPU"
    )
