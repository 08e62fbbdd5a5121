"""Two experts: switched where diffusers' `WanImageToVideoPipeline` switches, with its image conditioning."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from wan_folder import (
    FLOW_SHIFT,
    HEIGHT,
    NUM_FRAMES,
    TEXT_DIM,
    WIDTH,
    edit_json,
    even_pipeline,
    generate,
    make_experts_folder,
    make_wan_folder,
    picture,
)

from vrlvr.errors import UserError
from vrlvr.models.experts import Experts, find_experts, image_condition, load_experts
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.sampling import sample
from vrlvr.sde import ODE, plan_steps, sigma_schedule

NUM_STEPS = 4
CPU = torch.device("cpu")
SIGMAS = sigma_schedule(NUM_STEPS, FLOW_SHIFT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experts_folder(tmp_path_factory.mktemp("experts") / "model")


class Recorder:
    """Forwards to a velocity and notes which expert ran."""

    def __init__(self, experts: Experts) -> None:
        self.experts, self.ran = experts, []
        for place, (dit, _) in enumerate(experts._experts):
            dit.register_forward_hook(lambda *_, place=place: self.ran.append(place))

    def __call__(self, *args: Any) -> torch.Tensor:
        return self.experts(*args)


# The last boundary is a sigma of the schedule itself, and of those that float32 makes smaller than it is.
@pytest.mark.parametrize(("boundary", "ran"), [(0.9, [0, 0, 1, 1]), (0.99, [0, 1, 1, 1]), (SIGMAS[2], [0, 0, 0, 1])])
def test_the_pipeline_generates_the_same(source: Path, tmp_path: Path, boundary: float, ran: list[int]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "model_index.json").unlink()
    shutil.copy(source / "model_index.json", folder)
    edit_json(folder / "model_index.json", boundary_ratio=boundary)

    torch.manual_seed(2)
    text_PLM = torch.randn(2, 5, TEXT_DIM)
    codec = WanVAECodec.from_pretrained(folder / "vae", CPU)
    condition = image_condition(codec, picture(), NUM_FRAMES)
    velocity = Recorder(load_experts(folder, CPU, text_PLM, torch.float32))
    channels, frames, height, width = codec.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    shape = (channels, frames + 1, height, width)
    steps = plan_steps(SIGMAS, ODE, 0.0, 0)
    ours = sample(velocity, steps, shape, condition, torch.tensor([1]), torch.tensor([7]), seed=3)
    assert velocity.ran == ran

    pipeline = even_pipeline(folder)
    latents = generate(pipeline, ours.states[0], text_PLM[1:], NUM_STEPS, "latent")
    assert (latents - ours.states[0]).std() > 0.1
    torch.testing.assert_close(latents, ours.latents_BCFHW, atol=2e-5, rtol=0)
    video = codec.decode(latents[:, :, :1], latents[:, :, 1:])
    expected = generate(pipeline, ours.states[0], text_PLM[1:], NUM_STEPS, "np") * 255
    assert np.abs(video - expected).max() < 0.51


def test_the_condition_is_that_of_the_pipeline(source: Path) -> None:
    codec = WanVAECodec.from_pretrained(source / "vae", CPU)
    pixels = torch.from_numpy(picture()).movedim(-1, 1).float() / 127.5 - 1
    _, expected = even_pipeline(source).prepare_latents(
        pixels, 1, codec.latent_channels, HEIGHT, WIDTH, NUM_FRAMES, torch.float32, CPU
    )
    condition = image_condition(codec, picture(), NUM_FRAMES)
    torch.testing.assert_close(condition, expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"num_frames=8 must be 1 \+ 4k"):
        image_condition(codec, picture(), 8)


def test_a_batch_of_one_sigma(source: Path) -> None:
    experts = load_experts(source, CPU, torch.randn(1, 3, TEXT_DIM), torch.float32)
    x, condition = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 7, 2, 4, 4)
    with pytest.raises(AssertionError, match="one side of the boundary"):
        experts(x, torch.tensor([0.95, 0.5]), condition, torch.tensor([0, 0]))


def test_find_experts(source: Path, tmp_path: Path) -> None:
    assert find_experts(source) == 0.9
    single = make_wan_folder(tmp_path / "single")
    assert find_experts(single) is None
    with pytest.raises(UserError, match="has no transformer_2; load its one transformer"):
        load_experts(single, CPU, torch.randn(1, 3, TEXT_DIM))


@pytest.mark.parametrize("boundary", [None, 1.5, "0.9"])
def test_experts_need_a_boundary(tmp_path: Path, boundary: Any) -> None:
    folder = make_experts_folder(tmp_path / "model")
    edit_json(folder / "model_index.json", boundary_ratio=boundary)
    with pytest.raises(UserError, match=f"boundary_ratio={boundary} .* between 0 and 1"):
        find_experts(folder)


def test_experts_that_pin_their_image_are_no_such_model(tmp_path: Path) -> None:
    folder = make_experts_folder(tmp_path / "model")
    edit_json(folder / "model_index.json", expand_timesteps=True)
    with pytest.raises(UserError, match="transformer must take its image by channel"):
        load_experts(folder, CPU, torch.randn(1, 3, TEXT_DIM))
