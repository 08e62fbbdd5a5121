"""Supervised fine-tuning: flow matching (Lipman et al. 2023) on the planner's videos, the clean first frame out of the loss."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vrlvr.checkpoint import Checkpoints, TrainState
from vrlvr.config import Config, SftConfig
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.engine import make_engine
from vrlvr.evaluation.run import success_by_task
from vrlvr.footprint import set_recompute
from vrlvr.phases import phase
from vrlvr.policy import Policy
from vrlvr.puzzles import Puzzle
from vrlvr.run_log import RunLog
from vrlvr.sde import shifted
from vrlvr.source import Source, TrainingSet
from vrlvr_kernels.philox import normal

SFT_STREAM = 2


@dataclass
class Progress:
    """What SFT must remember beside tensors. stop_at: last step, once the validation success has reached its mark."""

    step: int = 0
    stop_at: int | None = None
    success: dict[str, float] = field(default_factory=dict)


def train_sft(
    config: Config,
    world: World,
    log: RunLog,
    checkpoints: Checkpoints,
    policy: Policy,
    source: Source,
    train: dict[str, list[Puzzle]],
    val: dict[str, list[Puzzle]],
) -> Policy:
    """Trains the policy in place and returns its moving average."""
    sft = config.sft
    data = {task: source.training_set(batch) for task, batch in train.items()}
    epoch_size = sum(len(batch) for batch in train.values())
    ema = Ema(policy, sft.ema_decay)
    engine = make_engine(config, world, policy, sft.weight_decay, sft.grad_clip)
    progress = Progress(success=dict.fromkeys(config.data.tasks, 0.0))
    state = TrainState(engine, ema, progress)
    restored = checkpoints.restore("sft", state)
    first_step = progress.step + 1
    set_recompute(config, policy, source, world.size, "sft")
    while progress.step < (progress.stop_at or sft.max_steps):
        progress.step += 1
        lr = sft.lr * _lr_factor(progress, config)
        x0, first, prompt_B, sigma_B, noise = _draw(config, world, data, progress)
        x = torch.lerp(x0, noise, sigma_B.view(-1, 1, 1, 1, 1))
        loss = torch.zeros((), device=world.device)
        with phase("sft_step"):
            with engine.accumulate():
                tensors = (x, sigma_B, first, prompt_B, noise - x0)
                for *inputs, v in zip(*(t.split(sft.micro_batch or len(x0)) for t in tensors), strict=True):
                    part = (policy(*inputs) - v).square().mean() * (len(v) / sft.batch_size)
                    part.backward()
                    loss += part.detach()
            grad_norm = engine.step(lr)
        with engine.whole_weights():
            ema.update(policy, progress.step)

        scalars = {"loss": world.sum(loss).item(), "lr": lr, "grad_norm": grad_norm}
        if progress.step % sft.validate_every == 0:
            with engine.whole_weights():
                progress.success = success_by_task(config, world, ema.model, source, val, noise_seed=progress.step)
            mean = float(np.mean(list(progress.success.values())))
            scalars |= {"val_success": mean} | {f"val_success_{t}": s for t, s in progress.success.items()}
            if sft.stop_success is not None and progress.stop_at is None and mean >= sft.stop_success:
                progress.stop_at = min(sft.max_steps, progress.step + sft.cooldown_steps)
        log.log("sft", progress.step, progress.stop_at or sft.max_steps, **scalars)
        if progress.step < (progress.stop_at or sft.max_steps):
            save_at_times(sft, epoch_size, checkpoints, state)
    if restored != "sft-final" or progress.step >= first_step:  # else it is there
        checkpoints.save("sft", state, name="sft-final")
    engine.close()
    return ema.model


def save_at_times(sft: SftConfig, epoch_size: int, checkpoints: Checkpoints, state: TrainState) -> None:
    """Saves if this step has completed another save_every_epochs."""
    step, size = state.progress.step, sft.save_every_epochs * epoch_size
    saves, before = (int(n * sft.batch_size / size) for n in (step, step - 1))
    if saves > before:
        epoch = saves * sft.save_every_epochs
        checkpoints.save("sft", state, f"sft-epoch-{epoch:03.0f}" if epoch == int(epoch) else f"sft-{step:06d}")


def _lr_factor(progress: Progress, config: Config) -> float:
    """Linear warm-up; linear decay to 0 over the cool-down, or over the last cooldown_steps where SFT runs its course."""
    sft = config.sft
    left = (progress.stop_at or sft.max_steps) - progress.step + 1
    return min(1.0, progress.step / max(1, sft.warmup_steps), left / max(1, sft.cooldown_steps))


def _draw(
    config: Config, world: World, data: dict[str, TrainingSet], progress: Progress
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """This rank's part of the step's batch, a pure function of (seed, step, task mix): x0, first, prompt, sigma, noise.

    Sigmas are stratified over the batch: one in each of batch_size equal parts of [0, 1], then shifted.
    """
    size, step = config.sft.batch_size, progress.step
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, SFT_STREAM, step]))
    weights = np.array([(1.05 - progress.success[t]) ** 2 if config.sft.adaptive_mix else 1.0 for t in data])
    tasks = rng.choice(len(data), size, p=weights / weights.sum())
    picks = rng.random(size)
    strata = (rng.permutation(size) + rng.random(size)) / size
    encoded = list(data.values())
    mine = world.share(size)
    rows = [encoded[tasks[i]].row(int(picks[i] * len(encoded[tasks[i]]))) for i in mine]
    x0, first, prompt_B = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
    sigma_B = torch.tensor([shifted(float(strata[i]), config.sampler.shift) for i in mine], device=world.device).float()
    samples_B = torch.tensor([step * size + i for i in mine], device=world.device)
    noise = normal(config.seed, SFT_STREAM, samples_B, 0, x0[0].numel()).view_as(x0)
    return x0, first, prompt_B, sigma_B, noise
