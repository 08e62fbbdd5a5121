"""The exact codec: nothing is lost on our renderings, and the latents have the scale of the noise."""

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_puzzles

from vrlvr.batches import videos_of
from vrlvr.errors import UserError
from vrlvr.models.tiny_codec import TONES, TinyCodec, check_board

CONFIG = tiny_config()


def videos(start: int, stop: int) -> np.ndarray:
    return videos_of(tiny_puzzles(CONFIG, stop)[start:], CONFIG.data)


@pytest.fixture(scope="module")
def codec() -> TinyCodec:
    return TinyCodec.fit(videos(0, 90))


def test_videos_it_has_never_seen_are_exact(codec: TinyCodec) -> None:
    video_BTYXC = videos(90, 150)
    latents = codec.encode(video_BTYXC)
    assert latents.dtype == torch.float32
    assert latents.shape[1:] == codec.latent_shape(5, 16, 16) == (codec.latent_channels, 1, 4, 4)
    decoded = codec.decode(codec.encode_first(video_BTYXC[:, 0]), latents)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, video_BTYXC)


def test_more_frames_and_other_frame_sizes(codec: TinyCodec) -> None:
    once = videos(0, 6)
    longer = np.concatenate([once, once[:, 1:][:, ::-1]], axis=1)  # 9 frames
    wider = np.concatenate([longer, longer], axis=3)
    latents = codec.encode(wider)
    assert latents.shape == (6, *codec.latent_shape(9, 16, 32))
    np.testing.assert_array_equal(codec.decode(codec.encode_first(wider[:, 0]), latents)[:, :5], wider[:, :5])


def test_latents_are_white(codec: TinyCodec) -> None:
    rows = codec.encode(videos(0, 90)).double().movedim(1, -1).reshape(-1, codec.latent_channels)
    torch.testing.assert_close(rows.mean(0), torch.zeros_like(rows[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.T.cov(), torch.eye(rows.shape[1]).double(), rtol=0, atol=1e-5)
    assert codec.latent_channels <= TONES


def test_it_survives_saving(codec: TinyCodec) -> None:
    again = TinyCodec.from_state_dict(codec.state_dict())
    torch.testing.assert_close(again.encode(videos(0, 9)), codec.encode(videos(0, 9)), rtol=0, atol=0)


def test_any_latents_decode_to_a_video(codec: TinyCodec) -> None:
    noise = 100 * torch.randn(2, *codec.latent_shape(9, 16, 16), generator=torch.Generator().manual_seed(0))
    decoded = codec.decode(codec.encode_first(videos(0, 2)[:, 0]), noise)
    assert decoded.shape == (2, 9, 16, 16, 3)
    np.testing.assert_array_equal(decoded[:, 0], videos(0, 2)[:, 0])


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        ((6, 16, 16), "use 5"),
        ((3, 16, 16), "use 5"),
        ((1, 16, 16), "use 5"),
        ((12, 16, 16), "use 13"),
        ((5, 18, 16), "18"),
    ],
)
def test_sizes_that_do_not_fit(codec: TinyCodec, size: tuple[int, int, int], remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        codec.latent_shape(*size)


def test_boards_that_it_cannot_code_exactly_are_refused() -> None:
    enlarged = videos(0, 6).repeat(2, 2).repeat(2, 3)[:, :, 2:-2, 2:-2]  # cells of 8 pixels, off the codec's lattice
    with pytest.raises(UserError, match="not coded exactly"):
        TinyCodec.fit(enlarged)
    check_board("maze", 4, 4, 16, 24)
    for height, width in ((20, 20), (16, 20), (18, 16), (12, 16)):
        with pytest.raises(UserError, match=r"use data.height=16, data.width=16"):
            check_board("maze", 4, 4, height, width)


@pytest.mark.parametrize("task", ["maze", "flowfree", "sokoban"])
def test_one_task_alone_is_exact(task: str) -> None:
    batch = [puzzle for puzzle in tiny_puzzles(CONFIG, 300) if puzzle.task == task]
    video_BTYXC = videos_of(batch, CONFIG.data)
    codec = TinyCodec.fit(video_BTYXC[:60])
    decoded = codec.decode(codec.encode_first(video_BTYXC[60:, 0]), codec.encode(video_BTYXC[60:]))
    np.testing.assert_array_equal(decoded, video_BTYXC[60:])
    gram = codec.basis_TC.T @ codec.basis_TC
    torch.testing.assert_close(gram, torch.eye(len(gram)).double(), rtol=0, atol=1e-9)
