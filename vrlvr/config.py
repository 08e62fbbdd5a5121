"""Every option of a run. The defaults are the tiny recipe that learns on a laptop; configs/*.yaml override them.

Numbers that the paper leaves open were chosen by experiment; RESULTS.md tells which.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from vrlvr.audit import AuditConfig
from vrlvr.errors import UserError
from vrlvr.models.tiny_codec import check_board
from vrlvr.policy import Conditioning
from vrlvr.puzzles import DENSE_REWARD, ROOMS
from vrlvr.puzzles.flow_free import Difficulty as FlowFreeDifficulty
from vrlvr.puzzles.maze import Difficulty as MazeDifficulty
from vrlvr.puzzles.sokoban import Difficulty as SokobanDifficulty
from vrlvr.second_opinion import SecondOpinionConfig

Stage = Literal["all", "data", "sft", "grpo", "eval"]


@dataclass
class DataConfig:
    """What puzzles, and how they are drawn.

    tasks: any of maze, flowfree, sokoban. height, width: pixels. num_frames: 1 + 4k.
    frames_per_move: frames that a move lasts in the planner's videos.
    num_train: solved puzzles a task for SFT. num_val, num_test: puzzles a task to validate and to test on.
    dir: a folder made by `vrlvr data`, whose train and test puzzles are used instead of generated ones.
    encoded: a folder made by `vrlvr encode` of such a one: latents of videos and first frames, and the prompts' embeddings.
    """

    tasks: list[str] = field(default_factory=lambda: list(ROOMS))
    height: int = 16
    width: int = 20
    num_frames: int = 5
    frames_per_move: int = 1
    num_train: int = 2000
    num_val: int = 64
    num_test: int = 400
    dir: str | None = None
    encoded: str | None = None
    maze: MazeDifficulty = field(default_factory=MazeDifficulty)
    flowfree: FlowFreeDifficulty = field(default_factory=lambda: FlowFreeDifficulty(mixes=((5, 5), (6, 5))))
    sokoban: SokobanDifficulty = field(default_factory=SokobanDifficulty)


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021) in place of full fine-tuning. rank 0: none. alpha: their scale is alpha / rank.

    targets: ends of module names in the transformer's blocks.
    """

    rank: int = 0
    alpha: float = 64.0
    targets: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    )


@dataclass
class ModelConfig:
    """The diffusion transformer: its sizes, by the names of diffusers' config.json, and how it is computed.

    path: a folder of a Wan model in Diffusers' layout, whose transformer is trained on and whose VAE and text encoder made
    data.encoded; the sizes below are then the folder's. dtype: of the weights in computation; the optimizer keeps float32
    masters of bfloat16 ones. lora: adapters instead of full fine-tuning.
    conditioning: pin (first frame as clean tokens, Wan2.2-TI2V) or concat (by channel, Wan2.2-I2V).
    attention: a backend of vrlvr.models.attention, for rollout and replay alike; auto: the best of this GPU's architecture.
    recompute: what the backward pass computes anew: none, selective (all but matrix products and attention) or full; auto:
    the least that fits in the GPU's memory.
    """

    path: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraConfig = field(default_factory=LoraConfig)
    num_attention_heads: int = 4
    attention_head_dim: int = 16
    num_layers: int = 4
    ffn_dim: int = 256
    freq_dim: int = 64
    text_dim: int = 64
    patch_size: tuple[int, int, int] = (1, 1, 1)
    conditioning: Conditioning = "concat"
    attention: Literal["auto", "flash3", "cudnn", "flash4", "flash2", "xformers", "flash", "efficient", "math"] = "auto"
    recompute: Literal["auto", "none", "selective", "full"] = "auto"


@dataclass
class SamplerConfig:
    """How videos are denoised. num_steps: ODE steps at evaluation, and the grid that the rollout walks.
    shift: resolution shift of the sigmas (5 for Wan2.2-TI2V-5B)."""

    num_steps: int = 10
    shift: float = 3.0


@dataclass
class SftConfig:
    """Supervised fine-tuning by flow matching on the planner's videos.

    max_steps bounds the run. With stop_success (a rate in [0, 1]), SFT stops early: once the mean validation success reaches
    it, cooldown_steps more are taken with the learning rate falling to 0. An epoch is one pass over the training videos.
    adaptive_mix draws tasks in proportion to (1.05 - their validation success)^2 instead of evenly.
    micro_batch: videos of one forward and backward pass; none: all of a process's share of the batch.
    ema_decay: of the moving average that is validated and used; 0: none. It takes 4 bytes a float32 weight, 6 a bfloat16 one.
    save_every_epochs: whole or part of one. What a killed run has done since is lost.
    """

    batch_size: int = 64
    micro_batch: int | None = None
    lr: float = 3e-3
    weight_decay: float = 0.0
    warmup_steps: int = 50
    max_steps: int = 3000
    stop_success: float | None = 0.33
    cooldown_steps: int = 100
    validate_every: int = 50
    adaptive_mix: bool = True
    ema_decay: float = 0.99
    save_every_epochs: float = 5
    grad_clip: float = 1.0


@dataclass
class GrpoConfig:
    """SDE-GRPO with Early-Step Focus.

    start: from the run's own SFT, or from model.path as it is, where that was fine-tuned elsewhere (an export, say).
    puzzles x group_size samples an update; noise and gradient in the first sde_steps of num_steps ("all": full-step training,
    all but the last step, which ends at sigma 0); the rest of the way is an ODE in tail_steps steps (None: on the full grid).
    mix: puzzles of each task per cycle of draws, 1 where it names none.
    keep_fraction: share of samples, by largest |advantage|, that is backpropagated. kl_weight: mean-space KL to the
    SFT policy. anchor_weight: MSE to the SFT velocity on anchor_fraction of the kept samples at a step after the window.
    inner_epochs: passes over a rollout (the clip can only bind from the second on).
    micro_batch: rows of one forward, of the rollout as of the update.
    rollout_puzzles: a process's puzzles that are rolled out together; those before them are decoded and judged meanwhile. none:
    all at once, and judged thereafter.
    shuffle_advantages: the control in which the reward teaches nothing.
    reward_decoder: a folder made by `vrlvr distill-decoder`, whose small decoder makes the videos that are rewarded while the
    audit finds its verdicts true; none: the codec's full decode. Evaluation always decodes in full.
    second_opinion: how often an independent verifier judges a sample of the rollouts.
    reward: dense, sparse (success only), or the weights of every task's components, {task: {component: weight}}.
    """

    start: Literal["sft", "model"] = "sft"
    updates: int = 180
    puzzles: int = 36
    mix: dict[str, int] = field(default_factory=dict)
    group_size: int = 8
    sampler: Literal["flow_sde", "dance_sde", "cps"] = "flow_sde"
    noise_level: float = 0.7
    sde_steps: int | Literal["all"] = 5
    tail_steps: int | None = 3
    shared_noise: bool = True
    inner_epochs: int = 1
    clip_range: float = 1e-3
    advantage_eps: float = 0.05
    keep_fraction: float = 0.5
    kl_weight: float = 0.0
    anchor_weight: float = 1e-3
    anchor_fraction: float = 0.25
    lr: float = 5e-4
    decay_fraction: float = 0.6
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9
    micro_batch: int = 512
    rollout_puzzles: int | None = None
    validate_every: int = 50
    save_every: int = 50
    shuffle_advantages: bool = False
    reward_decoder: str | None = None
    audit: AuditConfig = field(default_factory=AuditConfig)
    second_opinion: SecondOpinionConfig = field(default_factory=SecondOpinionConfig)
    reward: Literal["dense", "sparse"] | dict[str, dict[str, float]] = "dense"


@dataclass
class EvalConfig:
    """noise_seeds: videos a puzzle. batch_size: videos denoised at once."""

    noise_seeds: int = 2
    batch_size: int = 256


@dataclass
class EngineConfig:
    """How several GPUs share the work. zero_stage: what DeepSpeed's ZeRO spreads over them: 0 nothing (plain data
    parallelism, no DeepSpeed needed), 1 optimizer state, 2 and gradients, 3 and weights. offload: optimizer state to the CPU.
    """

    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False


@dataclass
class Config:
    """A whole run: run_dir receives everything; stage picks a part; resume auto goes on from the last checkpoint.

    checkpoints_to_keep: how many of each stage stay, the newest; null: all.
    init_from: another run, whose puzzles, codec and SFT policy a run of --stage grpo starts from.
    """

    run_dir: str = "runs/tiny"
    seed: int = 1
    stage: Stage = "all"
    resume: Literal["never", "auto"] = "never"
    checkpoints_to_keep: int | None = None
    init_from: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def reward_weights(config: Config) -> dict[str, dict[str, float]]:
    """{task: {component: weight}} of the configured reward."""
    reward = config.grpo.reward
    if reward == "sparse":
        return {task: {"solved": 1.0} for task in config.data.tasks}
    return DENSE_REWARD if reward == "dense" else reward


def num_sde_steps(config: Config) -> int:
    """L: denoising steps with noise and gradient."""
    last = config.sampler.num_steps - 1
    return last if config.grpo.sde_steps == "all" else config.grpo.sde_steps


def check(config: Config, world_size: int = 1) -> None:
    """Raises UserError, one line that names value, constraint and remedy, for options that contradict each other."""
    data, grpo, steps = config.data, config.grpo, config.sampler.num_steps
    if not data.tasks or len(set(data.tasks)) != len(data.tasks) or not set(data.tasks) <= set(ROOMS):
        raise UserError(f"data.tasks={data.tasks} must name one or more of {', '.join(ROOMS)}, each once")
    if data.num_frames < 5 or data.num_frames % 4 != 1:
        raise UserError(f"data.num_frames={data.num_frames} must be 1 + 4k; use {max(5, data.num_frames // 4 * 4 + 1)}")
    if grpo.group_size < 2:
        raise UserError(f"grpo.group_size={grpo.group_size} gives no advantage within a group; use at least 2")
    if grpo.puzzles * grpo.group_size < world_size:
        raise UserError(
            f"grpo.puzzles={grpo.puzzles} of grpo.group_size={grpo.group_size} are fewer samples than the {world_size} "
            f"processes; use at least {-(-world_size // grpo.group_size)} puzzles"
        )
    if config.engine.zero_stage == 3 and config.sft.micro_batch and config.sft.batch_size % world_size:
        raise UserError(
            f"sft.batch_size={config.sft.batch_size} must be divisible by the {world_size} processes, which under ZeRO stage 3 "
            f"take every pass together; use {-(-config.sft.batch_size // world_size) * world_size}"
        )
    if not 1 <= num_sde_steps(config) < steps:
        raise UserError(
            f"grpo.sde_steps={grpo.sde_steps} must be from 1 to {steps - 1} of the sampler's {steps} steps, whose last one "
            f"ends without noise; lower it, or use all"
        )
    if not 0 < grpo.noise_level <= (1 if grpo.sampler == "cps" else math.inf):
        raise UserError(
            f"grpo.noise_level={grpo.noise_level} must be above 0, and for the sampler cps at most 1; use 0.7, or so"
        )
    if grpo.tail_steps is not None and grpo.tail_steps < 1:
        raise UserError(f"grpo.tail_steps={grpo.tail_steps} must be at least 1; leave it out (null) for the full grid")
    _check_wan(config)
    for task in data.tasks if data.dir is None else []:
        board = getattr(data, task)
        check_board(task, board.rows, board.cols, data.height, data.width)
        moves = board.max_moves if task == "flowfree" else board.max_plan
        if 1 + moves * data.frames_per_move > data.num_frames:
            raise UserError(
                f"data.{task} has plans of up to {moves} moves of {data.frames_per_move} frames, too long for "
                f"data.num_frames={data.num_frames}; use data.num_frames={1 + -(-moves * data.frames_per_move // 4) * 4}"
            )
    if unknown := sorted(set(grpo.mix) - set(data.tasks)):
        raise UserError(f"grpo.mix names {', '.join(unknown)}; the tasks are {', '.join(data.tasks)}")
    if min(grpo.mix.values(), default=1) < 1:
        raise UserError(
            f"grpo.mix={grpo.mix} must give every task at least 1; leave a task out of data.tasks to skip it"
        )
    for task in data.tasks:
        weights = reward_weights(config).get(task)
        components = ROOMS[task].COMPONENTS
        if not weights:
            raise UserError(f"grpo.reward has no weights for {task}; give some of {', '.join(components)}")
        if unknown := sorted(set(weights) - set(components)):
            raise UserError(
                f"grpo.reward.{task} names {', '.join(unknown)}; the components are {', '.join(components)}"
            )
    for name, value, least in (
        ("data.num_train", data.num_train, world_size),
        ("data.num_val", data.num_val, world_size),
        ("data.num_test", data.num_test, world_size),
        ("data.frames_per_move", data.frames_per_move, 1),
        ("sft.batch_size", config.sft.batch_size, world_size),
        ("sft.micro_batch", 1 if config.sft.micro_batch is None else config.sft.micro_batch, 1),
        ("sft.max_steps", config.sft.max_steps, 1),
        ("sft.validate_every", config.sft.validate_every, 1),
        ("grpo.updates", grpo.updates, 1),
        ("grpo.inner_epochs", grpo.inner_epochs, 1),
        ("grpo.micro_batch", grpo.micro_batch, 1),
        ("grpo.rollout_puzzles", 1 if grpo.rollout_puzzles is None else grpo.rollout_puzzles, 1),
        ("grpo.validate_every", grpo.validate_every, 1),
        ("grpo.save_every", grpo.save_every, 1),
        ("checkpoints_to_keep", 1 if config.checkpoints_to_keep is None else config.checkpoints_to_keep, 1),
        ("eval.noise_seeds", config.eval.noise_seeds, 1),
        ("eval.batch_size", config.eval.batch_size, 1),
    ):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}; raise it")
    if not config.sft.save_every_epochs > 0:
        raise UserError(f"sft.save_every_epochs={config.sft.save_every_epochs:g} must be above 0; use 0.5, or so")
    if not 0 < grpo.keep_fraction <= 1:
        raise UserError(f"grpo.keep_fraction={grpo.keep_fraction} must lie in (0, 1]; use 1 to keep every sample")


def _check_wan(config: Config) -> None:
    """The options of a pretrained model, and of half precision, hang together."""
    data, model = config.data, config.model
    if (model.path is None) != (data.encoded is None):
        given, missing = ("model.path", "data.encoded") if model.path else ("data.encoded", "model.path")
        raise UserError(f"{given} is given without {missing}; give both, with the folder that `vrlvr encode` made")
    if model.path is None:
        if config.grpo.reward_decoder is not None:
            raise UserError(
                f"grpo.reward_decoder={config.grpo.reward_decoder} stands in for a Wan VAE; give model.path, or leave it out"
            )
        if model.lora.rank > 0:
            raise UserError(
                f"model.lora.rank={model.lora.rank} needs a pretrained model; give model.path, or use rank 0"
            )
        if config.grpo.start == "model":
            raise UserError("grpo.start=model needs a pretrained model; give model.path, or use grpo.start=sft")
        return
    if data.dir is None:
        raise UserError("data.encoded needs the data set that was encoded; give its folder as data.dir")
    if model.conditioning != "pin":
        raise UserError(
            f"model.conditioning={model.conditioning} does not fit a pretrained TI2V model; use model.conditioning=pin"
        )
