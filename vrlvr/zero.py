"""DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) as an engine; the one file that knows DeepSpeed (0.19).

What each process holds of P trained parameters, of which W bytes are weights, on N processes:

| stage | weights | gradients during an update | masters and moments |
|---|---|---|---|
| 1, 2 | W | 4P | 12P / N |
| 3 | 4P / N, and W of one block and of what is outside the blocks | 4P | 8P / N |

Gradients are reduced once an update (`coalesce_grad_reduction`), which is what the fewest bytes move by; the price is that
stages 1 and 2 differ only after the last backward pass, when 2 keeps a part of the gradients.

Stage 3 and our transformer. DeepSpeed gathers a module's weights around the module's forward and backward, but ours are read
by others: fused projections read several layers', the text's keys and values are made before the forward. So a block's
weights are registered with the block (`register_external_parameter`) and gathered for the whole of it, and all that is read
outside a block's forward, 13 % of Wan2.2-TI2V-5B, is held whole. DeepSpeed's root module is a wrapper that is never called:
its prefetching records the order of all calls and compares it across processes, so that rollouts and updates, or another
number of rows, would invalidate it. Blocks are thus gathered when needed and not before.

DeepSpeed keeps one dtype, float32, of all that stage 3 spreads; weights travel in the dtype in which they are used, and are
cast to it as they arrive.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vrlvr.distributed import World, own_cores
from vrlvr.engine import NamedTensors
from vrlvr.models.dit import Block
from vrlvr.optim import BETAS, NOT_FINITE, set_lr
from vrlvr.policy import Policy

os.environ.setdefault(
    "DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu"
)  # else it looks for one, and says so
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed calls collectives by names that torch 2.13 says it will drop.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")

import deepspeed  # noqa: E402
from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME  # noqa: E402
from deepspeed.runtime.zero import parameter_offload, register_external_parameter  # noqa: E402
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus  # noqa: E402

_REDUCE_BUCKET_NUMEL = 100_000_000
_MOMENTS = ("exp_avg", "exp_avg_sq")
_HELD = "held by vrlvr"  # among a parameter's active modules: DeepSpeed releases none that has one
# Parameters of a block that are read outside its forward: the modulation, and what makes keys and values of the text.
_READ_OUTSIDE = ("scale_shift_table", "attn2.to_k.", "attn2.to_v.", "attn2.norm_k.")


class _NeverCalled(nn.Module):
    """DeepSpeed's root module."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy


@dataclass(frozen=True)
class _Piece:
    """Where this process's part of a parameter lies: elements `mine` of the flattened one are elements `place` of `flat`."""

    flat: Tensor
    place: slice
    mine: slice


class ZeroEngine:
    """ZeRO stage 1, 2 or 3; see `vrlvr.engine.Engine`."""

    def __init__(
        self, policy: Policy, world: World, stage: int, offload: bool, weight_decay: float, max_grad_norm: float
    ) -> None:
        self.spreads_weights = stage == 3
        self._policy, self._world, self._offload = policy, world, offload
        policy.capturable = not self.spreads_weights
        self._trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._dtypes = {p: p.dtype for p in policy.parameters()}
        for p in self._trained.values():
            p.grad_dtype = torch.float32  # micro-batches are added in float32, see `vrlvr.masters`
            if self.spreads_weights:
                setattr(p, PARAM_COMM_DTYPE_ATTR_NAME, p.dtype)
                p.data = p.data.float()
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for p in self._trained.values():
            by_dtype.setdefault(p.dtype, []).append(p)
        fused = True if offload or world.device.type == "cuda" else None
        self._adamw = torch.optim.AdamW(
            [{"params": group} for group in by_dtype.values()],
            lr=0.0,
            weight_decay=weight_decay,
            betas=BETAS,
            fused=fused,
        )
        _join_deepspeed(world)
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=_NeverCalled(policy),
            optimizer=self._adamw,
            config=_options(stage, offload, max_grad_norm, sum(p.numel() for p in self._trained.values())),
            dist_init_required=False,
        )
        self._sharded: list[list[Any]] = []
        self._held: list[Any] = []
        if self.spreads_weights:
            self._prepare_blocks()
        self._pieces = dict(self._find_pieces())

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        self._clear_gradients()
        with self._engine.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                self._clear_gradients()  # DeepSpeed reduces on the way out, which would wait for the others
                raise
            if self.spreads_weights:
                self._zero.parameter_offload.release_backward_leftovers()
            separate = getattr(self._zero, "use_grad_accum_attribute", False)  # stage 1 with half-precision weights
            for p in self._parameters():
                if p.grad is None:
                    _set_zero_gradient(p)
                p.grad.mul_(self._world.size)  # DeepSpeed averages
                if separate:
                    p.grad_accum, p.grad = p.grad, None

    def step(self, lr: float) -> float:
        set_lr(self._adamw, lr)
        with _all_cores() if self._offload else nullcontext():
            self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if self._zero.overflow or not torch.isfinite(torch.tensor(norm)):
            raise FloatingPointError(f"the gradient norm is {norm}: {NOT_FINITE}")
        self._hold(self._held)
        return norm

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        for block in self._sharded:
            self._hold(block)
        try:
            yield
        finally:
            for block in self._sharded:
                self._let_go(block)

    def weights(self) -> NamedTensors:
        for name, tensor in self._policy.state_dict(keep_vars=True).items():
            if self.spreads_weights and name in self._trained:
                yield name, self._whole(name, lambda flat: flat).to(self._dtypes[tensor])
            else:
                yield name, tensor.detach()

    def optimizer_state(self) -> NamedTensors:
        state = self._adamw.state
        flats = self._flats()
        for name, p in self._trained.items():
            if all("exp_avg" in state[flat] for flat in flats):
                for key in _MOMENTS:
                    yield f"{name}.{key}", self._whole(name, lambda flat, key=key: state[flat][key])
                yield f"{name}.step", state[flats[0]]["step"].cpu().clone()
            if self._dtypes[p] != torch.float32:
                yield f"{name}.master", self._whole(name, lambda flat: flat)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        for name, piece in self._pieces.items():
            if piece:
                master = optimizer_state.get(f"{name}.master", weights[name])
                piece.flat[piece.place] = master.flatten()[piece.mine].to(piece.flat)
        self._load_moments(optimizer_state)
        if self.spreads_weights:
            for shards, masters in zip(self._zero.fp16_partitioned_groups_flat, self._flats(), strict=True):
                shards.data.copy_(masters)
            self._let_go(self._held)
            self._hold(self._held)
        for name, tensor in self._policy.state_dict(keep_vars=True).items():
            if not (self.spreads_weights and name in self._trained):
                tensor.copy_(weights[name])

    def close(self) -> None:
        self._clear_gradients()
        self._engine.destroy()
        parameter_offload.FWD_MODULE_STACK.clear()  # its only root would keep the policy alive

    def _load_moments(self, optimizer_state: Mapping[str, Tensor]) -> None:
        steps = {float(optimizer_state[name]) for name in optimizer_state if name.endswith(".step")}
        self._adamw.state.clear()
        if not steps:
            return
        assert len(steps) == 1, "every step is every parameter's"
        for flat in self._flats():
            on_device = self._adamw.defaults["fused"]
            step = torch.tensor(max(steps), device=flat.device if on_device else "cpu")
            self._adamw.state[flat] = {"step": step} | {key: torch.zeros_like(flat) for key in _MOMENTS}
        for name, piece in self._pieces.items():
            if piece:
                for key in _MOMENTS:
                    part = optimizer_state[f"{name}.{key}"].flatten()[piece.mine]
                    self._adamw.state[piece.flat][key][piece.place] = part.to(piece.flat)

    def _parameters(self) -> list[Any]:
        """The trained ones, with the attributes that DeepSpeed gives them."""
        return list(self._trained.values())

    def _clear_gradients(self) -> None:
        for p in self._parameters():
            p.grad = None

    def _prepare_blocks(self) -> None:
        """Stage 3: what is gathered block by block, what is held whole, and the dtype in which either is used."""
        blocks = [module for module in self._policy.modules() if isinstance(module, Block)]
        for block in blocks:
            inside = [p for name, p in block.named_parameters() if not name.startswith(_READ_OUTSIDE)]
            self._sharded.append(inside)
            for p in inside:
                register_external_parameter(block, p)
        sharded = {p for block in self._sharded for p in block}
        self._held = [p for p in self._trained.values() if p not in sharded]
        coordinator = self._zero.parameter_offload.get_param_coordinator()
        fetch = coordinator.fetch_sub_module

        def fetch_and_cast(module: Any, forward: bool) -> None:
            fetch(module, forward=forward)
            self._cast(p for _, p in module.ds_external_parameters())

        coordinator.fetch_sub_module = fetch_and_cast
        self._hold(self._held)

    def _cast(self, parameters: Iterable[nn.Parameter]) -> None:
        for p in parameters:
            p.data = p.data.to(self._dtypes[p])

    def _hold(self, parameters: list[Any]) -> None:
        """Gathers stage 3's parameters, for all modules to come until `_let_go`."""
        if absent := [p for p in parameters if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]:
            absent[0].all_gather_coalesced(absent).wait()
        self._cast(parameters)
        for p in parameters:
            p.ds_active_sub_modules.add(_HELD)

    def _let_go(self, parameters: list[Any]) -> None:
        for p in parameters:
            p.ds_active_sub_modules.discard(_HELD)
        parameters[0].partition(parameters)

    def _flats(self) -> list[Tensor]:
        """This process's parts of all trained parameters, laid end to end in float32."""
        return (
            self._zero.fp32_partitioned_groups_flat
            if self.spreads_weights
            else self._zero.single_partition_of_fp32_groups
        )

    def _find_pieces(self) -> Iterator[tuple[str, _Piece | None]]:
        names = {p: name for name, p in self._trained.items()}
        zero, rank = self._zero, self._world.rank
        if self.spreads_weights:
            for flat, group in zip(self._flats(), zero.fp16_groups, strict=True):
                place = 0
                for p in group:
                    size = p.partition_numel()
                    mine = slice(min(rank * size, p.ds_numel), min((rank + 1) * size, p.ds_numel))
                    length = mine.stop - mine.start
                    yield names[p], _Piece(flat, slice(place, place + length), mine) if length else None
                    place += size
            return
        layout = zip(self._flats(), zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)
        for flat, group, offsets in layout:
            begin, end = rank * flat.numel(), (rank + 1) * flat.numel()
            for p, offset in zip(group, offsets, strict=True):
                first, last = max(offset, begin), min(offset + p.numel(), end)
                piece = _Piece(flat, slice(first - begin, last - begin), slice(first - offset, last - offset))
                yield names[p], piece if first < last else None

    def _whole(self, name: str, source: Any) -> Tensor:
        """A parameter's float32 tensor of its pieces in source(flat) on all processes: on rank 0, on the CPU."""
        p, piece = self._trained[name], self._pieces[name]
        whole = torch.zeros(_shape(p).numel(), device=self._world.device)
        if piece:
            whole[piece.mine] = source(piece.flat)[piece.place].to(whole.device)
        dist.reduce(whole, 0)
        return whole.view(_shape(p)).cpu()


@contextmanager
def _all_cores() -> Iterator[None]:
    """This process's share of the machine's cores for PyTorch, which has one core where torchrun was not told otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, own_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _set_zero_gradient(parameter: nn.Parameter) -> None:
    present = parameter.data
    parameter.data = present.new_empty(()).expand(
        _shape(parameter)
    )  # a gradient must have its size, even if it is spread
    parameter.grad = torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)
    parameter.data = present


def _join_deepspeed(world: World) -> None:
    """Lets DeepSpeed use torchrun's process group, or makes one for a single process."""
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # DeepSpeed would compile an operator for CPU collectives, for minutes, and wait for ever on what a killed build has left.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _options(stage: int, offload: bool, max_grad_norm: float, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Batch sizes are ours alone: it is told 1."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "contiguous_gradients": False,
        "reduce_bucket_size": min(_REDUCE_BUCKET_NUMEL, num_parameters),
        "stage3_param_persistence_threshold": 0,
        # It would replace torch.nn.functional.linear for good by one that adds the bias in place, to a product that selective
        # recomputation has kept and would add it to once more.
        "memory_efficient_linear": False,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW serves CPUs too, and compiles nothing
        "zero_optimization": zero,
    }
