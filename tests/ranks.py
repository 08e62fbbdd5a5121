"""Jobs for several processes: started by `on_ranks`, run by this file as torchrun's script."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_codec, tiny_config, tiny_prompts
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vrlvr import heartbeat, options
from vrlvr.batches import Prompts
from vrlvr.build import build_policy
from vrlvr.config import Config
from vrlvr.distributed import World, joined_world
from vrlvr.engine import Engine, make_engine
from vrlvr.policy import Policy
from vrlvr.rows import RowBatch, dealt_evenly
from vrlvr.source import Rendered
from vrlvr.tensor_files import write_tensors
from vrlvr.train import train


def on_ranks(processes: int, job: str, argument: Any, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a job of this file in so many processes. Raises if it fails, with what they said."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, __file__, job, json.dumps(argument)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert finished.returncode == 0, finished.stderr[-5000:]
    return finished


def train_runs(world: World, argument: dict[str, list[list[str]]]) -> None:
    """Whole runs, one after another, each given by its command line. `again`: some of them, cut back and resumed."""
    for arguments in argument["runs"]:
        train(options.parse(arguments), world, arguments)
    for arguments in argument["again"]:
        config = options.parse(arguments)
        world.on_main(lambda run=Path(config.run_dir): cut_back(run, run / "reached"))
        train(config, world, arguments)


def cut_back(run_dir: Path, aside: Path) -> None:
    """As if the run had been killed in its second and last update. What it had reached is kept aside."""
    (run_dir / "checkpoints" / "grpo-final").rename(aside)
    (run_dir / "checkpoints" / "latest-grpo").write_text("grpo-000001\n")


def half_precision(world: World, argument: dict[str, Any]) -> None:
    """A few steps with bfloat16 weights by each of some engines; rank 0 writes what these hold to {folder}/{name}/.

    And the threads that AdamW had in each step, of `cores` that this process may use.
    """
    if "cores" in argument:
        os.sched_getaffinity = lambda _: set(range(argument["cores"]))
    threads: list[int] = []
    register_optimizer_step_pre_hook(lambda *_: threads.append(torch.get_num_threads()))
    for name, options_of_engine in argument["engines"].items():
        threads.clear()
        config = tiny_config(*argument["options"], *options_of_engine)
        engine, losses = train_in_half(config, world, steps=argument["steps"])
        folder = Path(argument["folder"]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for kind, tensors in (("model", engine.weights()), ("optimizer", engine.optimizer_state())):
            gathered = [(key, tensor.clone()) for key, tensor in tensors]  # on every rank
            if world.is_main:
                write_tensors(folder, kind, gathered, 10**9)
        if world.is_main:
            (folder / "losses.json").write_text(json.dumps(losses))
            (folder / "threads.json").write_text(json.dumps([*threads, torch.get_num_threads()]))
        engine.close()


def errors(world: World, argument: dict[str, Any]) -> None:
    """What is raised within an update comes out on every rank, and so does a gradient that is not finite."""
    for options_of_engine in argument["engines"].values():
        config = tiny_config(*options_of_engine)
        policy, _, _ = _half_policy(config)
        engine = make_engine(config, world, policy, weight_decay=0.0, max_grad_norm=1.0)
        with contextlib.suppress(ZeroDivisionError), engine.accumulate():
            policy.text.table.sum().backward()
            raise ZeroDivisionError
        with engine.accumulate():
            (policy.text.table * math.inf).sum().backward()
        with pytest.raises(FloatingPointError, match="lower the learning rate"):
            engine.step(1e-3)
        engine.close()


def train_in_half(config: Config, world: World, steps: int) -> tuple[Engine, list[list[float]]]:
    """bfloat16 weights, several backward passes a step, text of several tokens; the losses and gradient norms."""
    policy, prompts, latents = _half_policy(config)
    engine = make_engine(config, world, policy, weight_decay=0.01, max_grad_norm=0.5)
    rows, log, dim = world.share(len(latents)), [], policy.dit.config.dim
    for _ in range(steps):
        with engine.accumulate():
            context = policy.text_context()
            text, loss = context.leaves(), torch.zeros(())
            for i in rows:
                x, first, prompt = latents[i : i + 1], prompts.first_BC1HW[i : i + 1], prompts.prompt_B[i : i + 1]
                part = (policy(x, torch.tensor([0.5]), first, prompt, context=text) - x).square().mean() / len(latents)
                part.backward()
                loss += part.detach()
            context.backward(text)
            gradient = policy.dit.blocks[0].ffn.net[2].weight.grad  # of all passes, and not reduced before the last
            assert gradient.shape == (dim, config.model.ffn_dim)
        norm = engine.step(1e-2)
        assert engine.spreads_weights == (policy.dit.blocks[0].ffn.net[2].weight.numel() == 0)
        assert policy.capturable != engine.spreads_weights
        log.append([world.sum(loss).item(), norm])
    return engine, log


def _half_policy(config: Config) -> tuple[Policy, Prompts, torch.Tensor]:
    codec = tiny_codec(config)
    policy = build_policy(config, Rendered(config, codec, torch.device("cpu")), torch.device("cpu"))
    policy.text.table = torch.nn.Parameter(torch.randn(3, 4, config.model.text_dim))
    prompts = tiny_prompts(config, codec, 8)
    latents = torch.randn(8, *codec.latent_shape(5, 16, 16), generator=torch.Generator().manual_seed(0))
    return policy.to(torch.bfloat16), prompts, latents


def beat(world: World, argument: dict[str, Any]) -> None:
    """Waits for ever, in collectives or not; one rank may fail."""
    for name, value in argument.get("constants", {}).items():
        setattr(heartbeat, name, value)
    print("ready", flush=True)
    for i in range(10**9):
        if argument["collectives"]:
            world.sum(torch.ones(1))
        if world.rank == argument.get("failing") and i == 5:
            raise ZeroDivisionError("a bug")
        time.sleep(0.05)


def dealt(world: World, argument: dict[str, Any]) -> None:
    """Row i of all ranks' rows has terms_of[i] terms, and numbers[rank] rows lie on a rank: they are dealt anew."""
    terms_of = argument["terms_of"]
    for numbers in argument["numbers"]:
        total, first = sum(numbers), sum(numbers[: world.rank])
        mine = world.share(total)
        assert_rows(dealt_evenly(rows_of(range(first, first + numbers[world.rank]), terms_of), world), mine, terms_of)


def rows_of(numbers: range, terms_of: list[int]) -> RowBatch:
    """Rows, and their terms, that hold their numbers."""
    row = torch.tensor([i for i in numbers for _ in range(terms_of[i])], dtype=torch.int64)
    term = torch.tensor([sum(terms_of[:i]) + k for i in numbers for k in range(terms_of[i])], dtype=torch.float64)
    x = torch.tensor(list(numbers), dtype=torch.float32)
    return RowBatch(
        step=x.long(),
        x=x.view(-1, 1, 1).expand(-1, 2, 3),
        sigma=x / 100,
        first=x.view(-1, 1) + 0.5,
        prompt=x.long() % 3,
        row_of=row - numbers.start,
        next_x=term.float().view(-1, 1, 1).expand(-1, 2, 3),
        coefficients=term.view(-1, 1).expand(-1, 3),
        advantage=-term.float(),
        rollout_log_prob=term.float() + 0.25,
    )


def assert_rows(rows: RowBatch, numbers: range, terms_of: list[int]) -> None:
    for name, tensor in rows_of(numbers, terms_of).tensors().items():
        torch.testing.assert_close(getattr(rows, name), tensor, rtol=0, atol=0, msg=f"{name} of rows {numbers}")


JOBS = {job.__name__: job for job in (train_runs, half_precision, errors, beat, dealt)}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with joined_world() as joined:
        JOBS[sys.argv[1]](joined, json.loads(sys.argv[2]))
