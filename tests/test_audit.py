"""When the small decoder is used, what is compared, and when its use ends: with decoders that are told what to show."""

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_puzzles

from vrlvr.audit import AuditConfig, AuditedDecoder, agree, disagreement
from vrlvr.batches import videos_of
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.models.wan_decode import Window
from vrlvr.puzzles import Puzzle, generate, judge, maze, read_many, render, verify_many
from vrlvr.puzzles.verdict import Verdict

CONFIG = tiny_config()
SIZE = CONFIG.data.height, CONFIG.data.width
NUM_SAMPLES = 12


class Shown:
    """A decoder that shows a sample's own video; latents hold nothing but the sample's number."""

    pixels_per_latent = 4

    def __init__(self, videos: np.ndarray) -> None:
        self.videos, self.decoded, self.windows = videos, 0, list[Window]()

    def decode(self, first_latents_BC1HW: torch.Tensor, latents_BCFHW: torch.Tensor) -> np.ndarray:
        numbers = latents_BCFHW.flatten().long().tolist()
        assert first_latents_BC1HW.flatten().long().tolist() == numbers
        self.decoded += len(numbers)
        return self.videos[numbers]

    def decode_window(
        self, first_latents_BC1HW: torch.Tensor, latents_BCFHW: torch.Tensor, window: Window
    ) -> np.ndarray:
        (number,) = first_latents_BC1HW.flatten().long().tolist()
        self.windows += [window] if latents_BCFHW.shape[2] else []
        top, bottom, left, right = (self.pixels_per_latent * edge for edge in window)
        frames = slice(None if latents_BCFHW.shape[2] else 1)
        return self.videos[[number], frames, top:bottom, left:right]


@pytest.fixture
def puzzles() -> list[Puzzle]:
    return tiny_puzzles(CONFIG, NUM_SAMPLES)


@pytest.fixture
def solved(puzzles: list[Puzzle]) -> np.ndarray:
    return videos_of(puzzles, CONFIG.data)


def frozen(videos: np.ndarray) -> np.ndarray:
    return np.repeat(videos[:, :1], videos.shape[1], axis=1)


def numbered(number: int) -> torch.Tensor:
    return torch.arange(float(number)).view(-1, 1, 1, 1, 1)


class Run:
    """Updates of an audited decoder on the same samples."""

    def __init__(
        self, puzzles: list[Puzzle], small: np.ndarray, full: np.ndarray, world: World | None = None, **options
    ):
        self.puzzles, self.said = puzzles, list[str]()
        self.small, self.full = Shown(small), Shown(full)
        self.decoder = AuditedDecoder(
            self.small, self.full, SIZE, AuditConfig(**options), seed=1, world=world or World(), say=self.said.append
        )

    def update(self, number: int) -> dict[str, float]:
        latents = numbered(len(self.puzzles))
        verdicts = verify_many(self.puzzles, self.decoder.decode(latents, latents), SIZE)
        return self.decoder.audit(number, self.puzzles, latents, latents, verdicts)

    def solved(self) -> list[bool]:
        """Which samples are, what is in doubt read anew."""
        latents = numbered(len(self.puzzles))
        videos = self.decoder.decode(latents, latents)
        readings = self.decoder.reread(self.puzzles, read_many(self.puzzles, videos, SIZE), latents, latents)
        return [judge(puzzle, reading).solved for puzzle, reading in zip(self.puzzles, readings, strict=True)]


def test_equal_verdicts_keep_the_small_decoder(puzzles, solved):
    run = Run(puzzles, solved, solved, share=0.25)
    for update in range(4):
        scalars = run.update(update)
    assert run.small.decoded == 4 * NUM_SAMPLES
    assert run.full.decoded == scalars["decoder_audited"] == 4 * NUM_SAMPLES // 4
    assert scalars["decoder_disagreement"] == 0
    assert scalars["decoder_disagreement_high"] == disagreement([False] * 12)[1][1]
    assert scalars["decoder_small_in_use"] == 1
    assert run.said == []


def test_different_verdicts_end_its_use_for_good(puzzles, solved):
    run = Run(puzzles, solved, frozen(solved), share=0.5)
    scalars = run.update(7)
    assert scalars["decoder_disagreement"] == 1
    assert scalars["decoder_small_in_use"] == 0
    assert len(run.said) == 1
    assert run.said[0].startswith("update 7: the small reward decoder's verdicts differ")
    assert "100.00% of the last 6 audited samples" in run.said[0]
    run.full.videos = solved  # even if they were equal from now on
    again = run.update(8)
    assert run.small.decoded == NUM_SAMPLES  # of the first update
    assert run.full.decoded == NUM_SAMPLES // 2 + NUM_SAMPLES  # the audit, then every sample: none is decoded twice
    assert again == scalars
    assert len(run.said) == 1


def smeared(videos: np.ndarray, samples: list[int]) -> np.ndarray:
    """Videos of which some have a last frame whose upper left quarter is hard to read."""
    result, (height, width) = videos.copy(), SIZE
    quarter = np.s_[samples, -1, : height // 2, : width // 2]
    result[quarter] = result[quarter] // 3 + 80
    return result


def test_what_is_in_doubt_is_read_anew(puzzles, solved):
    run = Run(puzzles, smeared(solved, [2, 7]), solved)
    assert run.solved() == [True] * NUM_SAMPLES
    assert len(run.full.windows) == 2
    assert run.full.decoded == 0
    assert all(window.bottom * 4 <= SIZE[0] and window.right * 4 < SIZE[1] for window in run.full.windows)
    careless = Run(puzzles, smeared(solved, [2, 7]), solved, doubt=200.0)
    assert careless.solved().count(False) == 2
    assert careless.full.windows == []


def test_the_share_read_anew_is_told_for_each_update(puzzles, solved):
    small, latents = smeared(solved, [2, 7, 8]), numbered(NUM_SAMPLES)
    run = Run(puzzles, small, solved, share=0.0)
    readings, verdicts = read_many(puzzles, small, SIZE), verify_many(puzzles, solved, SIZE)
    for update in range(2):
        for part in (slice(0, 5), slice(5, NUM_SAMPLES)):
            run.decoder.reread(puzzles[part], readings[part], latents[part], latents[part])
        assert run.decoder.audit(update, puzzles, latents, latents, verdicts)["decoder_reread"] == 3 / NUM_SAMPLES
    assert run.decoder.audit(2, puzzles, latents, latents, verdicts)["decoder_reread"] == 0


def test_much_doubt_is_told_once(puzzles, solved):
    latents = numbered(NUM_SAMPLES)
    for doubtful, told in ((6, 0), (7, 1)):
        small = smeared(solved, list(range(doubtful)))
        run, readings = Run(puzzles, small, solved), read_many(puzzles, small, SIZE)
        for update in range(2):
            run.decoder.reread(puzzles, readings, latents, latents)
            run.decoder.audit(update, puzzles, latents, latents, verify_many(puzzles, solved, SIZE))
        assert len(run.said) == told
        assert all(line.startswith("update 0: 58% of the samples had cells") for line in run.said)


def test_the_full_decode_counts_even_if_the_small_one_is_better(puzzles, solved):
    run = Run(puzzles, solved, smeared(solved, [0, 1]), doubt=0.0)
    in_doubt = [bool(reading.rmse_TRK.max() > 0) for reading in read_many(puzzles, solved, SIZE)]
    assert run.solved() == [i > 1 or not in_doubt[i] for i in range(NUM_SAMPLES)]


def test_nothing_is_read_twice_once_all_is_decoded_in_full(puzzles, solved):
    run = Run(puzzles, smeared(solved, [0]), smeared(solved, [1]))
    run.decoder.trusted = False
    assert run.solved() == [i != 1 for i in range(NUM_SAMPLES)]
    assert (run.full.decoded, run.full.windows) == (NUM_SAMPLES, [])


def test_a_rate_below_the_threshold_is_borne(puzzles, solved):
    full = solved.copy()
    full[:3] = frozen(solved)[:3]
    assert not any(verdict.solved for verdict in verify_many(puzzles[:3], full[:3]))
    run = Run(puzzles, solved, full, share=1.0, threshold=0.3)
    for update in range(20):
        scalars = run.update(update)
    assert scalars["decoder_disagreement"] == 0.25
    assert scalars["decoder_small_in_use"] == 1
    run = Run(puzzles, solved, full, share=1.0, threshold=0.15)
    ended = [update for update in range(20) if run.decoder.trusted and not run.update(update)["decoder_small_in_use"]]
    assert len(ended) == 1
    assert ended[0] > 2  # not before the interval excludes the threshold


def test_only_the_newest_samples_count(puzzles, solved):
    run = Run(puzzles, solved, frozen(solved), share=1.0, threshold=1.0, window=24)
    run.update(0)
    assert run.update(1)["decoder_disagreement"] == 1
    run.full.videos = solved
    assert run.update(2)["decoder_disagreement"] == 0.5
    scalars = run.update(3)
    assert (scalars["decoder_disagreement"], scalars["decoder_audited"]) == (0, 24)


def test_what_is_audited_changes_with_the_update_and_repeats_with_the_seed(puzzles, solved):
    def chosen(update: int, rank: int = 0) -> list[int]:
        return Run(puzzles, solved, solved, World(rank=rank), share=0.25).decoder._audited(update, NUM_SAMPLES)

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(update)) for update in range(10)}) > 5
    assert chosen(1) != chosen(1, rank=1)
    assert {i for update in range(40) for i in chosen(update)} == set(range(NUM_SAMPLES))


def test_at_least_one_sample_or_none(puzzles, solved):
    assert Run(puzzles, solved, solved, share=0.001).update(0)["decoder_audited"] == 1
    never = Run(puzzles, solved, frozen(solved), share=0.0)
    assert never.update(0)["decoder_audited"] == 0
    assert never.decoder.trusted


def test_another_ranks_samples_count(puzzles, solved):
    class Two(World):
        """The other rank's decoders always differ."""

        def gather(self, value):
            return [value, [True] * len(value)]

    run = Run(puzzles, solved, solved, Two(), share=1.0)
    scalars = run.update(0)
    assert (scalars["decoder_disagreement"], scalars["decoder_audited"]) == (0.5, 2 * NUM_SAMPLES)
    assert not run.decoder.trusted


def test_a_resumed_run_goes_on_as_it_was(puzzles, solved):
    run = Run(puzzles, solved, frozen(solved), share=1.0, threshold=1.0)
    run.update(0)
    resumed = Run(puzzles, solved, frozen(solved), share=1.0, threshold=1.0)
    resumed.decoder.load_state(run.decoder.state())
    assert resumed.update(1) == run.update(1)
    run.decoder.trusted = False
    resumed.decoder.load_state(run.decoder.state())
    assert not resumed.decoder.trusted


def test_small_frames_are_read_by_the_size_of_the_full_ones():
    """Boards of cells of 53, so 52, pixels: in a quarter of each side they lie elsewhere than drawn anew at that size."""
    difficulty = maze.Difficulty(9, 9, 4, 12)
    puzzles = [generate("maze", difficulty, 0, "rl", i) for i in range(3)]
    full = np.stack([render(puzzle, 480, 832, 17, 1) for puzzle in puzzles])
    small = full.reshape(3, 17, 120, 4, 208, 4, 3).mean((3, 5)).astype(np.uint8)
    decoder = AuditedDecoder(
        Shown(small), Shown(full), (480, 832), AuditConfig(share=1.0), seed=1, world=World(), say=lambda line: None
    )
    latents = numbered(3)
    verdicts = verify_many(puzzles, decoder.decode(latents, latents), decoder.size)
    assert all(verdict.solved for verdict in verdicts)
    assert decoder.audit(0, puzzles, latents, latents, verdicts)["decoder_disagreement"] == 0


def verdict(solved: bool = False, **components: float) -> Verdict:
    return Verdict(solved, components, None, None, 0.0, 0.0)


def test_agreement():
    assert agree(verdict(progress=0.5, error=0.02), verdict(progress=0.5, error=0.06), 0.05)
    assert not agree(verdict(progress=0.5, error=0.02), verdict(progress=0.5, error=0.08), 0.05)
    assert not agree(verdict(progress=0.5), verdict(progress=0.25), 0.05)
    assert not agree(verdict(True, progress=1.0), verdict(False, progress=1.0), 0.05)


def test_disagreement_of_nothing_is_unknown():
    assert disagreement([]) == (0.0, (0.0, 1.0))


@pytest.mark.parametrize(
    "options",
    [
        {"doubt": -1},
        {"share": -0.1},
        {"share": 2},
        {"threshold": 1.5},
        {"tolerance": -1},
        {"window": 0},
    ],
)
def test_bad_options(options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name}=.* of the audit"):
        AuditConfig(**options)
