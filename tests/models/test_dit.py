"""The transformer against diffusers' `WanTransformer3DModel` on shared weights, and its own promises."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vrlvr.errors import UserError
from vrlvr.models import dit
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr_kernels.launch import implementation

TI2V = WanConfig(
    num_attention_heads=3,
    attention_head_dim=16,
    in_channels=6,
    out_channels=6,
    text_dim=20,
    freq_dim=32,
    ffn_dim=80,
    num_layers=2,
)
I2V = WanConfig(
    patch_size=(1, 1, 1),
    num_attention_heads=2,
    attention_head_dim=10,
    in_channels=9,
    out_channels=4,
    text_dim=12,
    freq_dim=16,
    ffn_dim=36,
    num_layers=3,
    cross_attn_norm=False,
)
WAN_5B = WanConfig()


def random_model(config: WanConfig) -> WanTransformer:
    """Every parameter away from its initial value, so that none of them can be ignored unseen."""
    torch.manual_seed(0)
    model = WanTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def inputs(config: WanConfig, grid: tuple[int, int, int], num_text_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of `grid` patches for two videos, their timesteps (no integers) and text."""
    torch.manual_seed(1)
    size = [patches * patch for patches, patch in zip(grid, config.patch_size, strict=True)]
    timestep = torch.tensor([331.17, 998.4])
    return torch.randn(2, config.in_channels, *size), timestep, torch.randn(2, num_text_tokens, config.text_dim)


def reference(model: WanTransformer) -> nn.Module:
    """diffusers' model with the same weights."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.WanTransformer3DModel(**model.config.to_diffusers())
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs


def per_token(timestep: Tensor, grid: tuple[int, int, int], num_clean_frames: int) -> Tensor:
    """The timesteps that diffusers' TI2V pipeline expands: (B, N), 0 for the tokens of the clean frames."""
    timestep_BN = timestep[:, None].repeat(1, grid[0] * grid[1] * grid[2])
    timestep_BN[:, : num_clean_frames * grid[1] * grid[2]] = 0
    return timestep_BN


@pytest.mark.parametrize("config", [TI2V, I2V], ids=["ti2v", "i2v"])
@pytest.mark.parametrize(
    ("grid", "num_text_tokens", "num_clean_frames"),
    [((3, 3, 5), 7, 1), ((1, 1, 2), 3, 0), ((2, 5, 3), 1, 0), ((4, 2, 3), 1, 1), ((5, 1, 1), 4, 2)],
)
def test_agrees_with_diffusers(
    config: WanConfig, grid: tuple[int, int, int], num_text_tokens: int, num_clean_frames: int
) -> None:
    ours = random_model(config)
    theirs = reference(ours)
    latents, timestep, text = inputs(config, grid, num_text_tokens)
    our_inputs = [latents.clone().requires_grad_(), text.clone().requires_grad_()]
    their_inputs = [latents.clone().requires_grad_(), text.clone().requires_grad_()]
    their_timestep = per_token(timestep, grid, num_clean_frames) if num_clean_frames else timestep

    velocity = ours(our_inputs[0], timestep, our_inputs[1], num_clean_frames)
    expected = theirs(their_inputs[0], their_timestep, their_inputs[1], return_dict=False)[0]
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)

    probe = torch.randn_like(expected) / expected.numel() ** 0.5
    (velocity * probe).sum().backward()
    (expected * probe).sum().backward()
    for mine, their in zip(our_inputs, their_inputs, strict=True):
        torch.testing.assert_close(mine.grad, their.grad, atol=1e-5, rtol=1e-4)
    their_parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        # With one text token the queries of cross-attention have no influence: no gradient here, a zero there.
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(grad, their_parameters[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("config", [TI2V, I2V], ids=["ti2v", "i2v"])
def test_state_dicts_go_both_ways(config: WanConfig) -> None:
    ours = random_model(config)
    theirs = reference(ours)
    back = WanTransformer(config)
    back.load_state_dict(theirs.state_dict(), strict=True)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())


def test_wan_5b_has_the_names_and_shapes_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        ours = WanTransformer(WAN_5B)
        theirs = diffusers.WanTransformer3DModel(**WAN_5B.to_diffusers())
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    assert round(sum(parameter.numel() for parameter in ours.parameters()) / 1e9, 3) == 5.000


@pytest.mark.parametrize("head_dim", [6, 8, 10, 16, 22, 24, 128])
def test_rope_is_that_of_diffusers(head_dim: int) -> None:
    module = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    cos, sin = module.WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)(torch.empty(1, 4, 5, 6, 14))
    table = dit.rope_table(head_dim, (5, 3, 7), torch.device("cpu"))
    torch.testing.assert_close(table[:, ::2], cos[0, :, 0, ::2], atol=1e-7, rtol=0)
    torch.testing.assert_close(table[:, 1::2], sin[0, :, 0, ::2], atol=1e-7, rtol=0)


def test_a_rope_table_made_while_sampling_serves_training() -> None:
    model = random_model(TI2V)
    latents, timestep, text = inputs(TI2V, (2, 7, 1), 1)
    dit.rope_table.cache_clear()
    with torch.inference_mode():
        model(latents, timestep, text)
    model(latents, timestep, text).sum().backward()
    assert model.patch_embedding.weight.grad is not None


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation gives, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_no_modulation_per_token() -> None:
    """Forward and backward make no tensor as large as (B, N, 6, D). diffusers' model does: the probe would see it."""
    ours = random_model(TI2V)  # a feed-forward of 80 < 6 D: nothing else is as large
    theirs = reference(ours)
    grid = (3, 4, 4)
    latents, timestep, text = inputs(TI2V, grid, 3)
    per_token_numel = 2 * 48 * 6 * TI2V.dim
    with LargestTensor() as largest:
        ours(latents, timestep, text, 1).sum().backward()
    assert largest.numel < per_token_numel
    with LargestTensor() as largest, torch.no_grad():
        theirs(latents, per_token(timestep, grid, 1), text)
    assert largest.numel >= per_token_numel


@pytest.mark.parametrize(("num_clean_frames", "num_segments"), [(0, 1), (1, 2)])
def test_time_is_embedded_once_a_segment_of_a_video(num_clean_frames: int, num_segments: int) -> None:
    model = random_model(TI2V)
    shapes = []
    model.condition_embedder.time_proj.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    latents, timestep, text = inputs(TI2V, (2, 2, 2), 1)
    model(latents, timestep, text, num_clean_frames)
    assert shapes == [(2, num_segments, 6 * TI2V.dim)]


def test_all_frames_clean_leaves_no_influence_to_the_timestep() -> None:
    model = random_model(TI2V)
    latents, timestep, text = inputs(TI2V, (2, 2, 3), 2)
    clean = model(latents, torch.zeros(2), text)
    torch.testing.assert_close(model(latents, timestep, text, 2), clean, atol=1e-6, rtol=0)
    assert not torch.allclose(model(latents, timestep, text), clean, atol=1e-3)


@pytest.mark.parametrize("cast", [lambda model: model.bfloat16(), lambda model: model.to(torch.bfloat16)])
def test_bfloat16_keeps_time_tables_and_layer_norms_in_float32(cast) -> None:
    exact = random_model(TI2V)
    half = cast(copy.deepcopy(exact))
    kept = {name for name, value in half.state_dict().items() if value.dtype == torch.float32}
    assert kept == {
        name for name in half.state_dict() if any(part in name for part in ("time_", "scale_shift_table", "norm2"))
    }
    module = pytest.importorskip("diffusers").WanTransformer3DModel
    theirs = {name for name in half.state_dict() if any(part in name for part in module._keep_in_fp32_modules)}
    assert theirs <= kept
    assert all(torch.equal(half.state_dict()[name], exact.state_dict()[name]) for name in kept)


def test_bfloat16_computes_close_to_float32_and_does_not_round_timesteps() -> None:
    exact = random_model(TI2V)
    half = copy.deepcopy(exact).bfloat16()
    latents, timestep, text = inputs(TI2V, (3, 3, 5), 7)
    expected = exact(latents, timestep, text, 1)
    velocity = half(latents, timestep, text, 1)
    assert velocity.dtype == torch.float32
    assert (velocity - expected).norm() < 0.03 * expected.norm()
    embedded = [model.condition_embedder.time(timestep.unsqueeze(1)) for model in (half, exact)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*embedded, strict=True))


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_changes_no_gradient(recompute: str) -> None:
    plain = random_model(TI2V)
    recomputing = WanTransformer(TI2V, recompute=recompute)
    recomputing.load_state_dict(plain.state_dict())
    latents, timestep, text = inputs(TI2V, (2, 3, 2), 3)
    for model in (plain, recomputing):
        model(latents, timestep, text, 1).square().sum().backward()
    for (name, mine), theirs in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name


@pytest.mark.parametrize("attention", ["flash", "math"])
@pytest.mark.parametrize("config", [TI2V, I2V], ids=["ti2v", "i2v"])
def test_the_fused_kernels_give_the_same_velocity_and_gradients(config: WanConfig, attention: str) -> None:
    """The whole model by Triton (its interpreter where there is no GPU) against the plain PyTorch path."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(config).to(device)
    model.attention = attention if device.type == "cpu" else "math"
    latents, timestep, text = (tensor.to(device) for tensor in inputs(config, (2, 1, 2), 2))
    results = []
    for name in ("reference", "triton"):
        with implementation(name):
            velocity = model(latents, timestep, text, 1)
            grads = torch.autograd.grad(velocity.square().mean(), list(model.parameters()))
        results.append([velocity, *grads])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-5 * float(plain.detach().abs().max()))


def test_cross_attention_to_one_token_is_the_general_one() -> None:
    attention = random_model(TI2V).blocks[0].attn2
    x = torch.randn(2, 5, TI2V.dim)
    k, v = attention.text_keys_values(torch.randn(2, 1, TI2V.dim))
    expected = attention.over_text(x, k, v, "math")
    torch.testing.assert_close(attention.over_one_text_token(v).expand_as(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_text_tokens", [1, 3])
def test_text_is_projected_once_for_many_videos_with_the_same_gradients(num_text_tokens: int) -> None:
    """Two prompts, five videos, two backward passes on one context: as if each video had brought its own text."""
    model = random_model(TI2V)
    prompts = torch.randn(2, num_text_tokens, TI2V.text_dim, requires_grad=True)
    prompt_B, calls = torch.tensor([1, 0, 1, 1, 0]), []
    latents, timestep = torch.randn(5, 6, 2, 4, 4), torch.linspace(100, 900, 5)
    leaves = [prompts, *model.parameters()]

    whole = model(latents, timestep, prompts[prompt_B], 1)
    expected = torch.autograd.grad(whole.square().sum(), leaves, allow_unused=True)

    hook = model.blocks[0].attn2.to_out[0].register_forward_hook(lambda module, args, out: calls.append(len(out)))
    context = model.text_context(prompts)
    gathered = context.leaves()
    for part in (slice(0, 2), slice(2, 5)):
        velocity = model(latents[part], timestep[part], gathered.of(prompt_B[part]), 1)
        torch.testing.assert_close(velocity, whole[part], atol=1e-5, rtol=0)
        velocity.square().sum().backward()
    context.backward(gathered)
    hook.remove()
    for leaf, grad in zip(leaves, expected, strict=True):
        assert (leaf.grad is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(leaf.grad, grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))
    assert calls == ([2, 2] if num_text_tokens == 1 else [2, 3])  # one token: even the output is per prompt


def test_the_texts_gradients_of_many_micro_batches_add_up_in_bfloat16() -> None:
    """In bfloat16 the 257th of equal gradients no longer changes their sum."""
    model = random_model(TI2V).bfloat16()
    context = model.text_context(torch.randn(1, 3, TI2V.text_dim))
    leaves = context.leaves()
    weight, passes = model.blocks[0].attn2.to_v.weight, 600
    expected = torch.autograd.grad(context.keys_values[0][1].sum(), weight, retain_graph=True)[0]
    for _ in range(passes):
        leaves.keys_values[0][1].sum().backward()
    context.backward(leaves)
    assert (weight.grad - passes * expected).norm() < 0.01 * passes * expected.norm()


class LowRank(nn.Module):
    """A layer wrapped as LoRA wraps it: what it adds is not in the `weight` it shows."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) * 0.3)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("path", ["attn1.to_q", "attn2.to_v", "ffn.net.0.proj"])
def test_a_wrapped_projection_is_not_bypassed(path: str) -> None:
    model = random_model(TI2V)
    latents, timestep, text = inputs(TI2V, (2, 2, 3), 2)
    before = model(latents, timestep, text)
    merged = copy.deepcopy(model)
    for block, merged_block in zip(model.blocks, merged.blocks, strict=True):
        wrapped = LowRank(block.get_submodule(path))
        block.set_submodule(path, wrapped)
        merged_block.get_submodule(path).weight.data += (wrapped.up @ wrapped.down).detach()
    after = model(latents, timestep, text)
    assert not torch.allclose(before, after, atol=1e-2)
    torch.testing.assert_close(after, merged(latents, timestep, text), atol=1e-5, rtol=0)


def test_training_from_scratch_starts_at_velocity_zero_and_learns() -> None:
    torch.manual_seed(0)
    model = WanTransformer(TI2V)
    model.init_weights()
    latents, timestep, text = inputs(TI2V, (2, 2, 3), 1)
    assert not model(latents, timestep, text, 1).any()
    target = torch.randn_like(latents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(latents, timestep, text, 1) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_config_of_diffusers_goes_both_ways() -> None:
    published = {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": "0.35.0.dev0",
        "added_kv_proj_dim": None,
        "attention_head_dim": 128,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "ffn_dim": 14336,
        "freq_dim": 256,
        "image_dim": None,
        "in_channels": 48,
        "num_attention_heads": 24,
        "num_layers": 30,
        "out_channels": 48,
        "patch_size": [1, 2, 2],
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": 4096,
    }
    assert WanConfig.from_diffusers(published) == WAN_5B
    assert WanConfig.from_diffusers(I2V.to_diffusers()) == I2V
    assert WanConfig.from_diffusers({"in_channels": 16, "out_channels": None}).out_channels == 16


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"attention_head_dim": 15}, "attention_head_dim=15 must be even and at least 6"),
        ({"attention_head_dim": 4}, "attention_head_dim=4 must be even and at least 6"),
        ({"freq_dim": 31}, "freq_dim=31 must be even .*; use 32"),
        ({"num_layers": 0}, "num_layers=0 must be a whole number of at least 1"),
        ({"patch_size": (1, 2)}, r"patch_size=\(1, 2\) must be three sizes"),
        ({"patch_size": (0, 2, 2)}, r"patch_size=\(0, 2, 2\) must be three sizes"),
        ({"eps": 0.0}, "eps=0.0 must be positive"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WanConfig(**sizes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_dim": 1280}, "image_dim=1280 is not supported"),
        ({"qk_norm": None}, "qk_norm=None is not supported"),
        ({"num_heads": 3}, "num_heads=3 is no key"),
    ],
)
def test_configs_of_other_models(config: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WanConfig.from_diffusers(config)


@pytest.mark.parametrize(
    ("shape", "timestep_shape", "num_clean_frames", "message"),
    [
        ((2, 5, 2, 4, 4), (2,), 0, "latents have 5 channels, the model takes in_channels=6"),
        ((2, 6, 2, 5, 4), (2,), 0, "5 latent rows must be a positive multiple of the patch size 2"),
        ((2, 6, 2, 4, 2050), (2,), 0, "2050 latent columns .* at most 2048"),
        ((2, 6, 0, 4, 4), (2,), 0, "0 latent frames"),
        ((2, 6, 2, 4, 4), (2,), 3, "num_clean_frames=3 .* 0 to the 2 latent frames"),
        ((2, 6, 2, 4, 4), (2,), -1, "num_clean_frames=-1"),
        ((2, 6, 2, 4, 4), (2, 8), 0, r"timestep of shape \(2, 8\) must be \(2,\)"),
    ],
)
def test_inputs_that_do_not_fit(shape: tuple, timestep_shape: tuple, num_clean_frames: int, message: str) -> None:
    model = WanTransformer(TI2V)
    with pytest.raises(UserError, match=message):
        model(torch.zeros(shape), torch.zeros(timestep_shape), torch.zeros(2, 1, TI2V.text_dim), num_clean_frames)
