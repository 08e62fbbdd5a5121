"""`vrlvr encode` and its reader, on a tiny model of the real classes and a small data set."""

import errno
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from vrlvr import cli, dataset, encode, puzzles
from vrlvr.encoded import EncodedData
from vrlvr.errors import UserError
from vrlvr.models.umt5 import UMT5TextEncoder
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.puzzles import ROOMS
from vrlvr.video_io import read_mp4, write_mp4

diffusers = pytest.importorskip("diffusers")

from wan_folder import TEXT_DIM, edit_json, make_experts_folder, make_wan_folder  # noqa: E402

CPU = torch.device("cpu")
SIZE = 64
NUM_FRAMES = 5


def make_data(out: Path, **changes: Any) -> Path:
    difficulties = {task: room.Difficulty() for task, room in ROOMS.items()}
    arguments = {"num_train": 3, "num_test": 1, "seed": 7, "height": SIZE, "width": SIZE, "num_frames": NUM_FRAMES}
    dataset.build(out, **(arguments | {"difficulties": difficulties, "workers": 1} | changes))
    return out


def run(data: Path, model: Path, out: Path, **changes: Any) -> EncodedData:
    """float32, three instances a shard."""
    encode.encode(data, model, out, **({"dtype": "float32", "shard_size": 3, "device": "cpu"} | changes))
    return EncodedData(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan"), max_shard_size="1GB")  # a file each, as published


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def made(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedData:
    return run(data, model, tmp_path_factory.mktemp("made") / "encoded")


@pytest.fixture
def copy(made: EncodedData, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "encoded"))


def all_stems(encoded: EncodedData, split: str) -> list[str]:
    return [stem for task in ROOMS for stem in encoded.stems(split, task)]


def codec_of(model: Path) -> WanVAECodec:
    return WanVAECodec.from_pretrained(model / "vae", CPU)


def image_of(data: Path, stem: str) -> np.ndarray:
    return np.asarray(Image.open(data / f"{stem}.png"))


def test_every_instance_is_there_once(made: EncodedData, data: Path) -> None:
    for split, number in (("train", 3), ("test", 1)):
        for task in ROOMS:
            expected = sorted(f"{split}/{task}/{path.stem}" for path in (data / split / task).glob("*.json"))
            assert made.stems(split, task) == expected
            assert len(expected) == number
    assert made.stems("train", "chess") == []
    assert made.latent_shape == (6, 1, SIZE // 16, SIZE // 16)


def test_first_frames_are_the_images_through_the_vae(made: EncodedData, data: Path, model: Path) -> None:
    """Which are those that the evaluation renders."""
    stems = [*reversed(all_stems(made, "train")), *all_stems(made, "test")]
    first = made.first(stems)
    assert first.dtype == torch.float32
    assert first.shape == (12, 6, 1, 4, 4)
    assert torch.equal(first, codec_of(model).encode_first(np.stack([image_of(data, stem) for stem in stems])))
    rendered = [puzzles.render_first_frame(made.puzzle(stem, data), SIZE, SIZE) for stem in stems]
    assert (np.stack(rendered) == np.stack([image_of(data, stem) for stem in stems])).all()


def test_first_frames_are_those_of_diffusers_pipeline(made: EncodedData, data: Path, model: Path) -> None:
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(model)
    for stem in (made.stems("train", "maze")[1], made.stems("test", "flowfree")[0]):
        image = pipeline.video_processor.preprocess(Image.open(data / f"{stem}.png"), height=SIZE, width=SIZE)
        with torch.no_grad():
            _, condition, _ = pipeline.prepare_latents(
                image, 1, 6, SIZE, SIZE, NUM_FRAMES, torch.float32, CPU, torch.Generator()
            )
        torch.testing.assert_close(made.first([stem]), condition, atol=1e-5, rtol=0)


def test_videos_follow_the_image(made: EncodedData, data: Path, model: Path) -> None:
    stems = [made.stems("train", task)[i] for task in ROOMS for i in (2, 0, 2)]
    videos = np.stack([read_mp4(data / f"{stem}.mp4") for stem in stems])
    videos[:, 0] = [image_of(data, stem) for stem in stems]
    latents = made.videos(stems)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, codec_of(model).encode(videos))
    assert not torch.equal(latents[0], latents[1])


def test_the_prompts_are_the_encoders(made: EncodedData, data: Path, model: Path) -> None:
    encoder = UMT5TextEncoder.from_pretrained(model, CPU, torch.float32)
    stems = [*all_stems(made, "test"), *all_stems(made, "train")]
    numbers = made.prompt_of(stems)
    assert numbers.dtype == torch.int64
    assert made.prompt_table.shape == (len(set(numbers.tolist())), 512, TEXT_DIM)
    for stem, number in zip(stems, numbers.tolist(), strict=True):
        puzzle = puzzles.load(data / f"{stem}.json")
        assert torch.equal(made.prompt_table[number], encoder.encode([puzzles.room_of(puzzle).prompt(puzzle)])[0])


def test_bfloat16_rounds_what_float32_keeps(made: EncodedData, data: Path, model: Path, tmp_path: Path) -> None:
    rounded = run(data, model, tmp_path / "encoded", dtype="bfloat16")
    stems = all_stems(made, "train")
    assert torch.equal(rounded.first(stems), made.first(stems).bfloat16().float())
    assert torch.equal(rounded.videos(stems), made.videos(stems).bfloat16().float())
    assert rounded.prompt_table.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.prompt_table.float(), made.prompt_table, atol=0.1, rtol=0.05)


def test_the_folder_is_as_described(made: EncodedData, data: Path) -> None:
    shards = ["prompts", *(f"train-{i:05d}" for i in range(3)), "test-00000"]
    names = {f"{shard}.safetensors{suffix}" for shard in shards for suffix in ("", ".sha256")}
    assert set(contents(made.folder)) == {"index.json", *names}
    for shard in shards:
        digest, name = (made.folder / f"{shard}.safetensors.sha256").read_text().split()
        assert hashlib.sha256((made.folder / name).read_bytes()).hexdigest() == digest
    index = json.loads((made.folder / "index.json").read_text())
    places = [(place["shard"], place["row"]) for place in index["instances"].values()]
    assert sorted(set(places)) == sorted(places)
    for stem, place in index["instances"].items():
        assert place["puzzle"] == hashlib.sha256((data / f"{stem}.json").read_bytes()).hexdigest()


def test_only_what_is_asked_for_is_encoded(data: Path, model: Path, tmp_path: Path) -> None:
    test = run(data, model, tmp_path / "test", tasks=["maze", "sokoban"], splits=["test"], videos=["train", "test"])
    assert [len(test.stems("test", task)) for task in ROOMS] == [1, 0, 1]
    assert not all_stems(test, "train")
    assert test.videos(all_stems(test, "test")).shape == (2, *test.latent_shape)
    bare = run(data, model, tmp_path / "bare", tasks=["maze"], videos=[])
    assert bare.first(bare.stems("train", "maze")).shape[0] == 3
    with pytest.raises(UserError, match=r"train-00000.* holds no video; encode with `--videos` naming its split"):
        bare.videos(bare.stems("train", "maze"))


def test_few_shards_are_open_whatever_is_read(data: Path, model: Path, made: EncodedData, tmp_path: Path) -> None:
    single = run(data, model, tmp_path / "encoded", shard_size=1)
    stems = all_stems(single, "train")
    assert len({single.index["instances"][stem]["shard"] for stem in stems}) == 9
    assert torch.equal(single.videos(stems), made.videos(stems))
    maps = Path(f"/proc/{os.getpid()}/maps")
    if maps.exists():
        assert 1 <= len({line.split()[-1] for line in maps.read_text().splitlines() if str(single.folder) in line}) <= 5


def test_threads_may_read_at_once(made: EncodedData) -> None:
    stems = all_stems(made, "train")
    expected = made.videos(stems)
    with ThreadPoolExecutor(8) as pool:
        read = [*pool.map(lambda i: made.videos([stems[i % 9]])[0], range(200))]
    assert all(torch.equal(video, expected[i % 9]) for i, video in enumerate(read))


def test_the_text_encoder_is_gone_before_the_vae_comes(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    load_text, load_vae = UMT5TextEncoder.from_pretrained, WanVAECodec.from_pretrained

    def text(*arguments: Any) -> UMT5TextEncoder:
        encoder = load_text(*arguments)
        events.append(weakref.ref(encoder.encoder))
        return encoder

    def vae(*arguments: Any) -> WanVAECodec:
        events.append(events[0]())
        return load_vae(*arguments)

    monkeypatch.setattr(UMT5TextEncoder, "from_pretrained", text)
    monkeypatch.setattr(WanVAECodec, "from_pretrained", vae)
    run(data, model, tmp_path / "encoded")
    assert len(events) == 2
    assert events[1] is None


def test_a_run_that_was_broken_off_goes_on(
    made: EncodedData, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the third shard: two stay, and only the others are encoded later."""
    out, encode_videos, calls = tmp_path / "encoded", WanVAECodec.encode, []

    def interrupted(codec: WanVAECodec, videos: np.ndarray) -> torch.Tensor:
        calls.append(len(videos))
        if len(calls) == 3 + 3 + 1:
            raise KeyboardInterrupt
        return encode_videos(codec, videos)

    monkeypatch.setattr(WanVAECodec, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, model, out)
    left = contents(out)
    assert {name for name in left if name.endswith(".safetensors")} == {
        "prompts.safetensors", "train-00000.safetensors", "train-00001.safetensors"
    }  # fmt: skip
    assert not [name for name in left if "partial" in name]
    with pytest.raises(UserError, match=r"lacks train-00002\.safetensors; complete it"):
        EncodedData(out)
    kept = (out / "train-00000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(UMT5TextEncoder, "from_pretrained", None)  # would raise if it were called
    run(data, model, out)
    assert calls == [1] * (7 + 3)
    assert (out / "train-00000.safetensors").stat().st_mtime_ns == kept
    assert contents(out) == contents(made.folder)


def test_a_complete_folder_is_left_alone(
    made: EncodedData, data: Path, model: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(UMT5TextEncoder, "from_pretrained", None)
    monkeypatch.setattr(WanVAECodec, "from_pretrained", None)
    run(data, model, copy)
    assert contents(copy) == contents(made.folder)
    assert "encoded is complete: 12 instances" in capsys.readouterr().out


def test_processes_share_the_shards(
    made: EncodedData, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    written = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        encode.encode(data, model, tmp_path / "encoded", dtype="float32", shard_size=3, device="cpu")
        written.append({path.name for path in (tmp_path / "encoded").glob("*.safetensors")})
    assert written[0] == {"train-00001.safetensors", "test-00000.safetensors"}
    assert contents(tmp_path / "encoded") == contents(made.folder)


@pytest.mark.parametrize("name", ["prompts.safetensors", "train-00001.safetensors", "test-00000.safetensors"])
def test_a_changed_bit_is_found_and_mended(name: str, made: EncodedData, data: Path, model: Path, copy: Path) -> None:
    EncodedData(copy).verify()
    changed = bytearray((copy / name).read_bytes())
    changed[-3] ^= 16
    (copy / name).write_bytes(changed)
    with pytest.raises(UserError, match=f"{name} is damaged .* makes it anew"):
        EncodedData(copy).verify()
    run(data, model, copy).verify()
    assert contents(copy) == contents(made.folder)


def test_shards_that_changed_places_are_found_and_mended(
    made: EncodedData, data: Path, model: Path, copy: Path
) -> None:
    """With their checksums, which are right but for the name."""
    for end in (".safetensors", ".safetensors.sha256"):
        one, other = copy / f"train-00000{end}", copy / f"train-00001{end}"
        one.rename(copy / "x")
        other.rename(one)
        (copy / "x").rename(other)
    with pytest.raises(UserError, match=r"train-00000\.safetensors is damaged"):
        EncodedData(copy).verify()
    run(data, model, copy).verify()
    assert contents(copy) == contents(made.folder)


@pytest.mark.parametrize("length", [0, 5, -8])
def test_a_cut_shard_is_told_on_reading(length: int, copy: Path) -> None:
    shard = copy / "train-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:length])
    encoded = EncodedData(copy)
    assert encoded.first(encoded.stems("train", "maze")).shape[0] == 3
    with pytest.raises(UserError, match=r"train-00001\.safetensors is damaged") as error:
        encoded.first(encoded.stems("train", "flowfree"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_gets_one_line(
    error: Exception, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(encode, "save_file", full)
    with pytest.raises(UserError, match=r"prompts\.safetensors cannot be written \(.*No space left on device"):
        run(data, model, tmp_path / "encoded")
    assert set(contents(tmp_path / "encoded")) == {"index.json"}


def test_a_disk_without_room_is_told_before_the_work(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes as the latents of 9 videos and 12 first frames take, and one less."""
    needed = 4 * 6 * 4 * 4 * (9 * 2 + 3 * 1)
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=needed - 1))
    with pytest.raises(UserError, match=r"needs 0\.0 GB more for latents, but 0\.0 GB are free there; free some"):
        run(data, model, tmp_path / "encoded")
    assert set(contents(tmp_path / "encoded")) == {"index.json"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=needed))
    made = run(data, model, tmp_path / "encoded")
    shards = made.folder.glob("*-0*.safetensors")
    assert sum(tensor.nbytes for path in shards for tensor in load_file(path).values()) == needed
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=0))
    run(data, model, tmp_path / "encoded")  # nothing is missing


def test_what_a_kill_left_is_cleared(data: Path, model: Path, copy: Path) -> None:
    (copy / "train-00001.safetensors").rename(copy / ".train-00001.safetensors.4711.partial")
    run(data, model, copy).verify()
    assert not [path for path in copy.iterdir() if path.name.endswith(".partial")]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_model_is_known_by_its_encoders(made: EncodedData, model: Path, tmp_path: Path) -> None:
    """The transformer may be another, and a library may have written its version into the configuration."""
    made.check(model, SIZE, SIZE, NUM_FRAMES)
    tuned = Path(shutil.copytree(model, tmp_path / "tuned"))
    shutil.rmtree(tuned / "transformer")
    edit(tuned / "vae" / "config.json", lambda config: config.update(_diffusers_version="0.99.0"))
    edit(tuned / "text_encoder" / "config.json", lambda config: config.update(transformers_version="4.57.0"))
    made.check(tuned, SIZE, SIZE, NUM_FRAMES)
    edit(tuned / "vae" / "config.json", lambda config: config["latents_mean"].reverse())
    with pytest.raises(UserError, match="was encoded with another VAE; repeat"):
        made.check(tuned, SIZE, SIZE, NUM_FRAMES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "another VAE"),
        ("text_encoder/model.safetensors", "another text encoder"),
        ("tokenizer/tokenizer.json", "another text encoder"),
    ],
)
def test_another_model_is_refused(
    name: str, message: str, made: EncodedData, data: Path, model: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    content = bytearray((other / name).read_bytes())
    content[-20] ^= 1
    (other / name).write_bytes(content)
    with pytest.raises(UserError, match=f"was encoded with {message}; .* choose another folder"):
        made.check(other, SIZE, SIZE, NUM_FRAMES)
    before = contents(made.folder)
    with pytest.raises(UserError, match=message):
        run(data, other, made.folder)
    assert contents(made.folder) == before


def test_large_weights_are_known_by_pieces(model: Path, tmp_path: Path) -> None:
    from vrlvr.models.fingerprint import fingerprints

    large = Path(shutil.copytree(model, tmp_path / "large"))
    path = large / "vae" / "diffusion_pytorch_model.safetensors"
    weights = np.zeros(32 << 20, np.uint8)
    prints = []
    for changed, size in (([], 0), ([0], 0), ([-1], 0), ([slice(5 << 20, 9 << 20)], 0), ([], 1), ([], 0)):
        content = weights.copy()
        for where in changed:
            content[where] = 1
        path.write_bytes(content.tobytes() + bytes(size))
        prints.append(fingerprints(large)["vae"])
    assert prints[0] == prints[-1]
    assert len(set(prints)) == 5


@pytest.mark.parametrize(
    ("size", "message"),
    [((32, 64, 5), "height=64, not 32"), ((64, 32, 5), "width=64, not 32"), ((64, 64, 9), "num_frames=5, not 9")],
)
def test_another_size_is_refused(size: tuple[int, int, int], message: str, made: EncodedData, model: Path) -> None:
    with pytest.raises(UserError, match=message):
        made.check(model, *size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype=float32, not bfloat16"),
        ({"shard_size": 4}, "shard_size=3, not 4"),
        ({"tasks": ["maze"]}, r"tasks=\['maze', 'flowfree', 'sokoban'\], not \['maze'\]"),
        ({"splits": ["train"]}, "splits="),
        ({"videos": ["train", "test"]}, "videos="),
    ],
)
def test_other_arguments_are_refused(
    changes: dict[str, Any], message: str, made: EncodedData, data: Path, model: Path
) -> None:
    before = contents(made.folder)
    with pytest.raises(UserError, match=message) as error:
        run(data, model, made.folder, **changes)
    assert "\n" not in str(error.value)
    assert contents(made.folder) == before


def test_another_data_set_is_refused(made: EncodedData, model: Path, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", seed=8)
    with pytest.raises(UserError, match=r"was encoded with other (puzzles|prompts)"):
        run(other, model, made.folder)
    stem = made.stems("train", "sokoban")[0]
    with pytest.raises(UserError, match=r"is not the puzzle that .* encodes"):
        made.puzzle(stem, other)
    with pytest.raises(UserError, match="cannot be read"):
        made.puzzle(stem, tmp_path / "nowhere")
    with pytest.raises(UserError, match="does not hold train/maze/00099"):
        made.first(["train/maze/00099"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["chess"]}, "has no 'chess' in train, test; it has"),
        ({"splits": ["val"]}, "splits=val names 'val'; use any of train, test"),
        ({"splits": []}, "has no instance"),
        ({"videos": ["all"]}, "videos=all names 'all'"),
        ({"shard_size": 0}, "shard_size=0 must be at least 1"),
        ({"device": "cuda:99"}, "device=cuda:99 cannot be used"),
        ({"device": "fast"}, "device=fast cannot be used"),
    ],
)
def test_bad_arguments_get_one_line(
    changes: dict[str, Any], message: str, data: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(data, model, tmp_path / "encoded", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "encoded").exists()


@pytest.mark.parametrize("height", [72, 80])  # 80: the VAE would take it, the transformer's patches not
def test_a_size_that_the_model_does_not_take_is_told_at_once(height: int, model: Path, tmp_path: Path) -> None:
    small = make_data(tmp_path / "data", height=height, num_test=0, tasks=["maze"])
    with pytest.raises(
        UserError, match=rf"{height}x64 pixels must have sides divisible by 32 \(16 pixels.*; use 64x64"
    ):
        run(small, model, tmp_path / "encoded")
    assert not (tmp_path / "encoded").exists()


def remove(*names: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return work


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("vae"), "has no vae; give a folder of a Wan model in Diffusers' layout"),
        (remove("tokenizer"), "has no tokenizer; give a folder"),
        (remove("vae/config.json"), "vae has no readable config.json"),
        (remove("vae/diffusion_pytorch_model.safetensors"), "vae is no readable VAE"),
        (remove("text_encoder/model.safetensors"), "has no readable text encoder"),
        (lambda folder: (folder / "vae/config.json").write_text("[]"), r"vae/config\.json is no model's configuration"),
        (
            lambda folder: (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"cut"),
            "vae is no readable VAE",
        ),
        (
            lambda folder: (folder / "text_encoder/model.safetensors").write_bytes(b"cut"),
            "has no readable text encoder .* download the model again",
        ),
        (lambda folder: edit_json(folder / "text_encoder/config.json", d_ff=64), "has no readable text encoder"),
        (lambda folder: edit_json(folder / "vae/config.json", base_dim=8), "vae is no readable VAE"),
        (remove("model_index.json"), r"has no model_index\.json, so it is no Diffusers folder"),
        (
            lambda folder: edit_json(folder / "model_index.json", vae=["diffusers", "AutoencoderKLHunyuanVideo"]),
            "component vae is AutoencoderKLHunyuanVideo, but must be AutoencoderKLWan",
        ),
        (lambda folder: edit_json(folder / "model_index.json", text_encoder=7), "component text_encoder is missing"),
        (lambda folder: edit_json(folder / "model_index.json", expand_timesteps=False), "is a text-to-video model"),
    ],
)
def test_a_model_that_is_none_gets_one_line(
    change: Callable[[Path], None], message: str, data: Path, model: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "wan"))
    change(broken)
    with pytest.raises(UserError, match=message) as error:
        run(data, broken, tmp_path / "encoded")
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_trained_is_not_encoded_for(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes its first frame by channel .* only TI2V models are trained"):
        run(data, make_experts_folder(tmp_path / "a14b"), tmp_path / "encoded")
    assert not (tmp_path / "encoded").exists()


def small_image(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "train/maze/00001.png")


def long_video(folder: Path) -> None:
    write_mp4(folder / "train/maze/00001.mp4", np.zeros((9, SIZE, SIZE, 3), np.uint8), fps=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("metadata_all.csv"), r"metadata_all\.csv is missing; make or complete"),
        (remove("manifest.json"), r"manifest\.json does not tell the videos' size"),
        (remove("test/maze/00000.json"), r"test/maze/00000\.json cannot be read"),
        (remove("train/maze/00001.png"), r"00001\.png cannot be read as an image"),
        (remove("train/maze/00001.mp4"), r"00001\.mp4 cannot be read \(No such file"),
        (small_image, r"00001\.png has 32x32 pixels, the data set 64x64"),
        (long_video, r"00001\.mp4 has 9x64x64 pixels, the data set 5x64x64"),
        (lambda folder: (folder / "metadata_all.csv").write_text("a,b\n1,2\n"), r"metadata_all\.csv is no metadata"),
        (
            lambda folder: (folder / "metadata_all.csv").write_text("video,prompt,input_image,puzzle\na,b,c\n"),
            r"metadata_all\.csv names the puzzle ''",
        ),
    ],
)
def test_a_data_set_that_is_broken_gets_one_line(
    change: Callable[[Path], object], message: str, data: Path, model: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    change(broken)
    with pytest.raises(UserError, match=message) as error:
        run(broken, model, tmp_path / "encoded")
    assert "\n" not in str(error.value)


def test_a_folder_of_other_content_is_refused(data: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    with pytest.raises(UserError, match=r"has files but no index\.json; choose an empty folder"):
        run(data, model, tmp_path / "notes")
    with pytest.raises(UserError, match="choose a folder whose parent exists"):
        run(data, model, tmp_path / "missing" / "encoded")


def edit_place(folder: Path, **values: Any) -> None:
    edit(folder / "index.json", lambda index: index["instances"]["train/maze/00000"].update(values))


def test_rows_that_a_shard_has_not_are_told(copy: Path) -> None:
    edit_place(copy, row=7)
    with pytest.raises(
        UserError, match=r"train-00000\.safetensors is damaged \(its first are not of the index's shape"
    ):
        EncodedData(copy).first(["train/maze/00000"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("index.json"), r"index\.json is missing; give a folder made by `vrlvr encode`"),
        (remove("train-00001.safetensors"), r"lacks train-00001\.safetensors; complete it"),
        (remove("prompts.safetensors.sha256"), r"lacks prompts\.safetensors; complete it"),
        (lambda folder: (folder / "index.json").write_text("{"), r"index\.json is broken"),
        (lambda folder: (folder / "index.json").write_text("[]"), r"index\.json is broken"),
        (lambda folder: (folder / "index.json").write_text('{"version": 2}'), "version=2, not 1"),
        (lambda folder: edit(folder / "index.json", lambda index: index.pop("instances")), "it lacks instances"),
        (lambda folder: edit(folder / "index.json", lambda index: index.update(instances=[])), "of another kind"),
        (
            lambda folder: edit(folder / "index.json", lambda index: index.update(latent_shape=[6, 1, 4])),
            "another kind",
        ),
        (
            lambda folder: edit(folder / "index.json", lambda index: index.update(prompts=[], instances={})),
            "another kind",
        ),
        (lambda folder: edit_place(folder, shard="../train-00000.safetensors"), "of another kind"),
        (lambda folder: edit_place(folder, row="0"), "of another kind"),
        (lambda folder: edit_place(folder, prompt=99), "of another kind"),
        (
            lambda folder: edit(folder / "index.json", lambda index: index["prompts"].append("one more")),
            r"prompts\.safetensors is damaged \(it holds fewer prompts",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_gets_one_line(change: Callable[[Path], object], message: str, copy: Path) -> None:
    change(copy)
    with pytest.raises(UserError, match=message) as error:
        EncodedData(copy)
    assert "\n" not in str(error.value)


def test_the_command(made: EncodedData, data: Path, model: Path, tmp_path: Path, capsys: Any) -> None:
    paths = ["--data", str(data), "--model", str(model), "--out", str(tmp_path / "encoded")]
    assert cli.main(["encode", *paths, "--dtype", "float32", "--shard_size", "3"]) == 0
    assert contents(tmp_path / "encoded") == contents(made.folder)
    capsys.readouterr()
    assert cli.main(["encode", *paths, "--tasks", "maze,sokoban", "--splits", "train", "--videos", ""]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"vrlvr: {tmp_path / 'encoded'} was encoded with dtype=float32, not bfloat16")
    assert cli.main(["encode", "--data", str(data)]) == 2
    assert cli.main(["encode", *paths, "--dtype", "float16"]) == 2
