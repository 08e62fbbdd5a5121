"""A model card's code generates what our sampler does."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vrlvr import options
from vrlvr.model_card import model_card
from vrlvr.models.text import FrozenText
from vrlvr.models.wan import load_transformer
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.policy import Policy
from vrlvr.sampling import sample
from vrlvr.sde import plan_steps, sigma_schedule

pytest.importorskip("diffusers")

from wan_folder import HEIGHT, NUM_FRAMES, TEXT_DIM, WIDTH, generate, make_wan_folder, picture

CPU = torch.device("cpu")
NUM_STEPS, SHIFT = 4, 5.0


def test_the_codes_video_is_our_samplers(tmp_path: Path) -> None:
    folder = make_wan_folder(tmp_path / "model", max_shard_size="1GB")
    sizes = [f"--data.height={HEIGHT}", f"--data.width={WIDTH}", f"--data.num_frames={NUM_FRAMES}"]
    sampler = [f"--sampler.num_steps={NUM_STEPS}", f"--sampler.shift={SHIFT}"]
    config = options.parse([*sizes, *sampler, f"--model.path={folder}"])
    options.save(config, tmp_path / "run" / "config.yaml")
    card = model_card(tmp_path / "run", config, "grpo-final", "diffusers")
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    code = found[1].replace("THIS_FOLDER", str(folder)).replace('.to("cuda")', "").replace("bfloat16", "float32")
    names: dict[str, Any] = {"first_frame": Image.fromarray(picture()[0]), "prompt": "a maze"}
    exec(code, names)  # our own text: what a reader of the card pastes
    assert np.array(names["video"].frames[0]).shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)

    text = FrozenText(torch.randn(1, 5, TEXT_DIM, generator=torch.Generator().manual_seed(2)))
    codec = WanVAECodec.from_pretrained(folder / "vae", CPU)
    first_BC1HW = codec.encode_first(picture())
    policy = Policy(load_transformer(folder, CPU, torch.float32), text, "pin")
    steps = plan_steps(sigma_schedule(NUM_STEPS, SHIFT), "flow_sde", 0.0, 0)
    shape = codec.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    ours = sample(policy, steps, shape, first_BC1HW, torch.tensor([0]), torch.tensor([7]), seed=3)
    noise = torch.cat((first_BC1HW, ours.states[0]), dim=2)
    latents = generate(names["pipeline"], noise, text.table, NUM_STEPS, "latent")
    torch.testing.assert_close(latents[:, :, 1:], ours.latents_BCFHW, atol=2e-5, rtol=0)
