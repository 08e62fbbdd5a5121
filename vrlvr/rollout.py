"""The policy without gradient, as rollouts and evaluations call it: text encoded once, full micro-batches, CUDA graphs."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vrlvr.models.dit import TextContext
from vrlvr.policy import Policy


class FrozenVelocity:
    """A velocity field (x, sigma_B, first, prompt_B) -> v at the policy's weights, and with the prompts, of the last `refresh`.

    micro_batch: rows of one forward, at most. On CUDA each shape is captured once and then replayed as a CUDA graph, which
    reads the weights in place: an optimizer that updates them in place needs a `refresh`, and no new graph.
    """

    def __init__(self, policy: Policy, micro_batch: int, graphs: bool = True) -> None:
        self._policy, self._micro_batch = policy, micro_batch
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}
        self._captures = graphs and policy.capturable and torch.cuda.is_available()
        self._pool: Any = None
        self._context: TextContext | None = None

    @torch.no_grad()
    def refresh(self, prompt_P: Tensor) -> None:
        """Takes up the policy's present weights, and the prompts that the calls to come will name."""
        context = self._policy.text_context(prompt_P)
        if self._context is None or self._context.shape != context.shape:
            self._context = context
            self._graphs.clear()
            # One for all graphs: only one runs at a time. Once its graphs are gone PyTorch takes a pool for dead.
            self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        else:
            self._context.copy_(context)  # graphs know its addresses

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma_B: Tensor, first_BC1HW: Tensor, prompt_B: Tensor) -> Tensor:
        parts = zip(*(tensor.split(self._micro_batch) for tensor in (x, sigma_B, first_BC1HW, prompt_B)), strict=True)
        return torch.cat([self._forward(*part) for part in parts])

    def _forward(self, *inputs: Tensor) -> Tensor:
        if not (self._captures and inputs[0].is_cuda):
            return self._velocity(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = _Graph(self._velocity, inputs, self._pool)
        return self._graphs[shapes](*inputs)

    def _velocity(self, *inputs: Tensor) -> Tensor:
        return self._policy(*inputs, context=self._context)


@lru_cache(maxsize=8)
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for good: PyTorch hands out 32 streams in turn, so one for every graph would some day be the scorer's."""
    return torch.cuda.Stream(device)


class _Graph:
    """One captured call of a function of CUDA tensors."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: Any) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        stream = _capture_stream(inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        # Compiles kernels and fills caches, which a capture may not. On its stream, for which cuBLAS then has a workspace:
        # one that a capture makes would lie in the graphs' pool and outlive them.
        with torch.cuda.stream(stream):
            function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: samples that are there already may be decoded meanwhile, in another thread, which allocates.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return self._output.clone()
