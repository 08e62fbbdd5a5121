"""What passes of a configuration's policy take of memory, measured on the meta device: shapes, no data (see `vrlvr.memory`)."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vrlvr.build import DTYPES
from vrlvr.config import Config
from vrlvr.memory import LiveBytes, traced_peak
from vrlvr.models.dit import WanTransformer
from vrlvr.models.recompute import Policy as RecomputePolicy
from vrlvr.models.text import FrozenText, TaskEmbedding
from vrlvr.models.wan_vae import WanVAECodec, levels
from vrlvr.policy import Policy
from vrlvr.workload import Sizes
from vrlvr_kernels import launch

# Parameters of a block that ZeRO's stage 3 holds whole, since they are read outside the block's forward (see `vrlvr.zero`).
_READ_OUTSIDE = ("scale_shift_table", "attn2.to_k.", "attn2.to_v.", "attn2.norm_k.")

Pass = Literal["forward", "sft", "update", "anchored update"]


@dataclass(frozen=True)
class Weights:
    """Of the policy: numbers of parameters, and bytes.

    in_blocks: bytes that ZeRO's stage 3 spreads. of_a_block: those of one block.
    """

    total: int
    trained: int
    half: int  # trained in half precision
    nbytes: int
    trained_nbytes: int
    in_blocks: int
    of_a_block: int


class Meter:
    """Measures passes of a configuration's policy on the meta device; remembers what it has measured.

    implementation: of the fused operations, whose temporary tensors differ. On CUDA the rollout's graphs keep theirs.
    """

    def __init__(self, config: Config, sizes: Sizes, implementation: launch.Implementation = "triton") -> None:
        self.config, self.sizes, self.implementation = config, sizes, implementation
        self._peaks: dict[tuple[Any, ...], tuple[int, int]] = {}  # of one and of two blocks
        self._texts: dict[int, tuple[int, int]] = {}  # likewise
        self._decodes: dict[int, int] = {}
        self._policies = [self._build(depth) for depth in (1, 2)]
        self.weights = self._count()
        self._codec = sizes.codec if isinstance(sizes.codec, WanVAECodec) else None  # the tiny one lives on the CPU
        self.codec_bytes = 0
        if self._codec:
            nn.Module.to(
                self._codec.vae, DTYPES[config.model.dtype]
            )  # diffusers' own warns of modules that are not there
            self.codec_bytes = sum(p.nbytes for p in self._codec.vae.parameters())

    def text(self, prompts: int) -> int:
        """Bytes of the text's keys and values of all blocks."""
        if prompts not in self._texts:
            one, two = (self._trace_text(policy, prompts) for policy in self._policies)
            self._texts[prompts] = one, two
        return self._extrapolated(*self._texts[prompts])

    def peak(
        self, what: Pass, rows: int, prompts: int, recompute: RecomputePolicy = "none", depth: int | None = None
    ) -> int:
        """Bytes that a pass over some rows allocates at most, beside parameters, their gradients and its inputs.

        depth: blocks that the transformer has, if not its own number.
        """
        key = what, rows, prompts, recompute
        if key not in self._peaks:
            one, two = (self._trace(policy, *key) for policy in self._policies)
            self._peaks[key] = one, two
        return self._extrapolated(*self._peaks[key], depth)

    def _extrapolated(self, one: int, two: int, depth: int | None = None) -> int:
        """From one block and two to all, which are alike."""
        return one + ((depth or self.sizes.dit.num_layers) - 1) * (two - one)

    def decode(self, videos: int) -> int:
        """Bytes that decoding so many videos allocates at most, the decoder's copies of weights and all videos but for the
        last part on the CPU (see `WanVAECodec.decode`)."""
        if not self._codec:
            return 0
        codec, (channels, frames, height, width) = self._codec, self.sizes.latent_shape
        chunk = min(frames, max(1, codec.max_latents // (height * width)))
        at_once = min(videos, max(1, codec.max_latents // (chunk * height * width)))
        if at_once not in self._decodes:
            first, latents = (torch.empty(at_once, channels, f, height, width, device="meta") for f in (1, frames))
            with LiveBytes([*codec.vae.parameters(), first, latents]) as memory:
                torch.cat([levels(part) for part in codec.pixels(first, latents)], dim=1)
            self._decodes[at_once] = memory.peak
        return self._decodes[at_once]

    def _build(self, depth: int) -> Policy:
        model, (prompts, length, dim) = self.config.model, self.sizes.text_shape
        with torch.device("meta"):
            dit = WanTransformer(replace(self.sizes.dit, num_layers=depth), attention=model.attention)
            dit = dit.to(DTYPES[model.dtype])
            text = (
                TaskEmbedding(prompts, dim)
                if model.path is None
                else FrozenText(torch.empty(prompts, length, dim, dtype=torch.bfloat16))
            )
        if model.lora.rank > 0:
            from vrlvr.lora import add_lora  # needs peft

            add_lora(dit, model.lora.rank, model.lora.alpha, model.lora.targets, seed=0)
        policy = Policy(dit, text, model.conditioning)
        for p in policy.parameters():
            if p.requires_grad:
                p.grad_dtype = torch.float32  # as `vrlvr.masters` has it
        return policy

    def _count(self) -> Weights:
        def count(policy: Policy) -> Weights:
            named = dict(policy.named_parameters())
            trained = [p for p in named.values() if p.requires_grad]
            in_blocks = sum(
                p.nbytes
                for name, p in named.items()
                if ".blocks." in name and not any(x in name for x in _READ_OUTSIDE)
            )
            return Weights(
                total=sum(p.numel() for p in named.values()),
                trained=sum(p.numel() for p in trained),
                half=sum(p.numel() for p in trained if p.dtype != torch.float32),
                nbytes=sum(p.nbytes for p in named.values()),
                trained_nbytes=sum(p.nbytes for p in trained),
                in_blocks=in_blocks,
                of_a_block=in_blocks // len(policy.dit.blocks),
            )

        one, two = (asdict(count(policy)) for policy in self._policies)
        return Weights(**{key: self._extrapolated(one[key], two[key]) for key in one})

    def _trace_text(self, policy: Policy, prompts: int) -> int:
        prompt_P = torch.empty(prompts, dtype=torch.int64, device="meta")
        with launch.implementation(self.implementation), torch.no_grad():
            with LiveBytes([*policy.parameters(), *policy.buffers(), prompt_P]) as memory:
                context = policy.text_context(prompt_P)
            assert context.keys_values
            return memory.live

    def _trace(self, policy: Policy, what: Pass, rows: int, prompts: int, recompute: RecomputePolicy) -> int:
        channels, frames, height, width = self.sizes.latent_shape
        latents = torch.empty(rows, channels, frames, height, width, device="meta")
        first = torch.empty(rows, channels, 1, height, width, device="meta")
        prompt_B = torch.empty(rows, dtype=torch.int64, device="meta")
        inputs = latents, torch.empty(rows, device="meta"), first, prompt_B
        prompt_P = torch.empty(prompts, dtype=torch.int64, device="meta")
        policy.dit.recompute = recompute
        with launch.implementation(self.implementation):
            if what != "forward":
                loss = _Loss(policy, prompt_P if what != "sft" else None, anchored=what == "anchored update")
                return traced_peak(loss, inputs)
            with torch.no_grad():
                context = policy.text_context(prompt_P)
                policy(*inputs, context=context)  # fills caches
                known = [tensor for pair in context.keys_values for tensor in pair]
                with LiveBytes([*policy.parameters(), *policy.buffers(), *known, *inputs]) as memory:
                    velocity = policy(*inputs, context=context)
                    del velocity
        return memory.peak


class _Loss(nn.Module):
    """A squared velocity, as costly as the losses of training. prompt_P: those of an update; None for an SFT step.

    anchored: it is that of the distance to a reference, which runs while the policy's activations are held.
    """

    def __init__(self, policy: Policy, prompt_P: Tensor | None, anchored: bool) -> None:
        super().__init__()
        self.policy, self._prompt_P, self._anchored = policy, prompt_P, anchored

    def forward(self, latents: Tensor, sigma_B: Tensor, first: Tensor, prompt_B: Tensor) -> Tensor:
        if self._prompt_P is None:
            return (self.policy(latents, sigma_B, first, prompt_B) - latents).square().mean()
        context = self.policy.text_context(self._prompt_P)
        text = context.leaves()
        for tensor in (t for pair in text.keys_values for t in pair):
            tensor.grad = torch.empty_like(tensor, dtype=tensor.grad_dtype)  # as from the second micro-batch on
        velocity = self.policy(latents, sigma_B, first, prompt_B, context=text)
        target = latents
        if self._anchored:
            with torch.no_grad():
                target = self.policy(latents, sigma_B, first, prompt_B, context=text)
        return (velocity - target).square().mean()
