"""How the processes of a run make one step of many gradients: plain data parallelism here, DeepSpeed's ZeRO in `vrlvr.zero`.

Whatever the engine, gradients are summed over the processes once an update, after its last backward pass, and a parameter
that got none counts as zero: any number of processes takes the steps of one. What an engine saves is by parameter, so one
engine's checkpoint is another's, at any number of processes.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.masters import MasterAdamW
from vrlvr.optim import adamw, clip_gradients, set_lr
from vrlvr.policy import Policy

NamedTensors = Iterator[tuple[str, Tensor]]


class Engine(Protocol):
    """A policy in training, its optimizer, and the way its processes share them.

    spreads_weights: each process holds a part of the weights. Then all must call the policy equally often with gradients, and
    other readers of it need `whole_weights`.
    """

    spreads_weights: bool

    def accumulate(self) -> AbstractContextManager[None]:
        """Every backward within adds to the gradients, from zero; they are summed over all processes at the end."""

    def step(self, lr: float) -> float:
        """Clips the gradients and takes AdamW's step; returns their norm before. Raises FloatingPointError if not finite."""

    def whole_weights(self) -> AbstractContextManager[None]:
        """Within, every process holds all weights, to be read without gradients as often as each likes."""

    def weights(self) -> NamedTensors:
        """What the policy's `state_dict` holds where weights are whole. On rank 0 only; all ranks must walk through it."""

    def optimizer_state(self) -> NamedTensors:
        """AdamW's {parameter}.{step, exp_avg, exp_avg_sq}, and .master of half-precision parameters; as `weights`."""

    def load(self, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        """Takes up what any engine saved of a policy of the same shapes and precision."""

    def close(self) -> None:
        """Lets go of the policy, which is not to be trained or called any more."""


class PlainEngine:
    """Every process holds everything."""

    spreads_weights = False

    def __init__(self, policy: nn.Module, optimizer: MasterAdamW, world: World, max_grad_norm: float) -> None:
        self._policy, self._optimizer, self._world, self._max_grad_norm = policy, optimizer, world, max_grad_norm
        self._trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        self._optimizer.zero_grad()
        yield
        self._world.sync_gradients(p for _, p in self._trained)

    def step(self, lr: float) -> float:
        norm = clip_gradients(self._policy, self._max_grad_norm)
        set_lr(self._optimizer, lr)
        self._optimizer.step()
        return norm

    def whole_weights(self) -> AbstractContextManager[None]:
        return nullcontext()

    def weights(self) -> NamedTensors:
        yield from self._policy.state_dict().items()

    def optimizer_state(self) -> NamedTensors:
        for index, values in self._optimizer.state_dict()["state"].items():
            for key, value in values.items():
                yield f"{self._trained[index][0]}.{key}", value

    def load(self, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        self._policy.load_state_dict(weights)
        place = {name: i for i, (name, _) in enumerate(self._trained)}
        state: dict[int, dict[str, Tensor]] = {}
        for entry in optimizer_state:
            name, key = entry.rsplit(".", 1)
            state.setdefault(place[name], {})[key] = optimizer_state[entry]
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})

    def close(self) -> None:
        self._optimizer.zero_grad()


def make_engine(config: Config, world: World, policy: Policy, weight_decay: float, max_grad_norm: float) -> Engine:
    """The engine that config.engine asks for; all processes call it. Copies of the policy are to be made before.

    One process has nothing to share and gets the plain engine, unless its optimizer is offloaded to the CPU.
    Raises UserError for what does not go together, or if DeepSpeed is missing.
    """
    stage, offload = config.engine.zero_stage, config.engine.offload
    if stage == 0 and offload:
        raise UserError("engine.offload=true needs DeepSpeed; set engine.zero_stage to 1, 2 or 3, or offload to false")
    if stage == 3 and not all(p.requires_grad for p in policy.parameters()):
        raise UserError(
            "engine.zero_stage=3 spreads the weights that are trained, and LoRA freezes most; use engine.zero_stage=0 to 2"
        )
    if stage == 0 or (world.size == 1 and not offload):
        return PlainEngine(policy, adamw(policy, 0.0, weight_decay), world, max_grad_norm)
    try:
        from vrlvr.zero import ZeroEngine
    except ImportError as error:
        raise UserError(
            f"engine.zero_stage={stage} needs the package deepspeed ({error}); install it with pip install vrlvr[deepspeed]"
        ) from error
    # One process has nobody to spread weights over.
    return ZeroEngine(policy, world, stage if world.size > 1 else 1, offload, weight_decay, max_grad_norm)
