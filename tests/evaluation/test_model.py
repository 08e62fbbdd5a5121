"""`vrlvr eval model`, end to end with tiny models of the real pipeline classes, against these pipelines called by hand."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import FOLDERS
from wan_folder import diffusers, edit_json, make_wan_folder

from vrlvr import dataset, puzzles
from vrlvr.cli import main
from vrlvr.errors import UserError
from vrlvr.evaluation import model as command
from vrlvr.evaluation.benchmark import read_items
from vrlvr.evaluation.generator import Generator, enough_memory, load_pipeline
from vrlvr.evaluation.letterbox import cut, fit
from vrlvr.evaluation.model_spec import specify
from vrlvr.evaluation.pipelines import COGVIDEOX, FAMILIES, HUNYUAN, WAN_EXPERTS, WAN_TI2V, family_of
from vrlvr.evaluation.videos import judge_folder
from vrlvr.export import LORA_FILE, comfyui_lora, diffusers_lora
from vrlvr.models.wan import export_pipeline, load_transformer
from vrlvr.video_io import read_mp4, write_mp4

HEIGHT, WIDTH, FRAMES = 32, 64, 9
SIZE = ["--height", str(HEIGHT), "--width", str(WIDTH)]  # which CogVideoX1.5 would not choose itself
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
Folders = dict[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A folder of every kind."""
    return {name: make(tmp_path_factory.mktemp("models") / "model") for name, make in FOLDERS.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mazes."""
    out = tmp_path_factory.mktemp("data") / "puzzles"
    maze = {"maze": puzzles.maze.Difficulty(2, 4, min_plan=2, max_plan=4)}
    dataset.build(out, 0, 2, 0, HEIGHT, WIDTH, FRAMES, ["maze"], maze, workers=1)
    return out


def evaluate(model: Path, data: Path, out: Path, *more: str) -> int:
    return main(
        ["eval", "model", "--model", str(model), "--system", "ours", "--data", str(data), "--out", str(out), *more]
    )


def by_hand(folder: Path, pipeline: str, prompt: str, image: Image.Image, seed: int, **options: Any) -> np.ndarray:
    """The video that diffusers' pipeline makes without anything of ours, video_TYXC uint8."""
    loaded = getattr(diffusers, pipeline).from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    frames = loaded(image=image, prompt=prompt, generator=generator, output_type="np", **options).frames[0]
    return (255 * frames).round().astype(np.uint8)


def alike(a: np.ndarray, b: np.ndarray, levels: float = 1) -> bool:
    """Equal but for the order of floating-point sums."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= levels


@pytest.mark.parametrize("name", FOLDERS)
def test_each_system_end_to_end(name: str, folders: Folders, data: Path, tmp_path: Path) -> None:
    """From the command line to results.json; what is written is the video of the pipeline's class with the card's settings."""
    family = next(family for family in FAMILIES if family.name == name)
    out, folder = tmp_path / "out", folders[name]
    assert evaluate(folder, data, out, "--steps", "2", "--num-puzzles", "1", *SIZE) == 0
    item = read_items(data)[0]
    guided = {} if family.negative_prompt is None else {"negative_prompt": family.negative_prompt}
    expected = by_hand(
        folder, family.pipeline, item.prompt, Image.open(item.first_frame).convert("RGB"),
        command.noise_seed("maze-00000", 0), height=HEIGHT, width=WIDTH, num_inference_steps=2,
        num_frames=17 if family is COGVIDEOX else FRAMES, guidance_scale=family.guidance, **guided,
    )  # fmt: skip
    write_mp4(tmp_path / "expected.mp4", expected, 16)
    assert alike(read_mp4(out / "videos/maze-00000.mp4"), read_mp4(tmp_path / "expected.mp4"), levels=8)  # of H.264
    assert specify(str(folder)).family.name == family.name
    (row,) = json.loads((out / "results.json").read_text())
    assert (row["system"], row["task"], row["num_puzzles"], row["source"]) == ("ours", "maze", 1, "measured")
    assert (row["num_missing"], row["num_undecodable"]) == (0, 0)
    assert "| ours | measured |" in (out / "results.md").read_text()
    assert name.split("-")[0] in (out / "results.md").read_text()  # the published row beside ours


def test_a_run_goes_on_where_it_was_stopped(folders: Folders, data: Path, tmp_path: Path, capsys: Any) -> None:
    """What is there stays and is judged; what is missing is made as it would have been; other settings are refused."""
    out, options = tmp_path / "out", ["--steps", "2", "--num-seeds", "2", "--batch-size", "2"]
    folder = folders["Wan2.2-TI2V-5B"]
    assert evaluate(folder, data, out, *options, "--num-puzzles", "1") == 0
    first = sorted((out / "videos").iterdir())
    assert [path.name for path in first] == ["maze-00000_0.mp4", "maze-00000_1.mp4"]
    before = read_mp4(first[1])
    (solved, _) = read_items(data)
    write_mp4(first[0], puzzles.render(solved.puzzle, HEIGHT, WIDTH, FRAMES, 1), 16)
    first[1].unlink()

    assert evaluate(folder, data, out, *options) == 0
    assert alike(read_mp4(first[1]), before, levels=8)
    assert len(list((out / "videos").iterdir())) == 4
    (row,) = json.loads((out / "results.json").read_text())
    assert (row["num_puzzles"], row["num_samples"], row["success_rate"]) == (2, 4, 25.0)

    assert evaluate(folder, data, out, "--steps", "3", "--num-seeds", "2", "--guidance", "1") == 2
    assert "steps=2 (now 3), guidance=5.0 (now 1.0)" in capsys.readouterr().err
    (out / "run.json").write_text("[]")
    assert evaluate(folder, data, out, *options) == 2
    assert "holds no object; choose another --out" in capsys.readouterr().err
    (out / "run.json").unlink()
    assert evaluate(folder, data, out, *options) == 2
    assert "no run.json" in capsys.readouterr().err


def test_a_changed_model_is_not_mixed_with_the_former(data: Path, tmp_path: Path, capsys: Any) -> None:
    model = make_wan_folder(tmp_path / "model")
    settings = command.run_settings(str(model), specify(str(model)), data, range(1))
    command.open_run(tmp_path / "out", settings)
    command.open_run(tmp_path / "out", settings | {"model": "moved/elsewhere"})
    weights = next((model / "transformer").glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    assert evaluate(model, data, tmp_path / "out") == 2
    assert "was begun with weights=" in capsys.readouterr().err


def test_processes_share_the_puzzles(folders: Folders, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out, options = tmp_path / "out", ["--steps", "1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(folders["Wan2.2-TI2V-5B"], data, out, *options) == 0
    assert [path.name for path in (out / "videos").iterdir()] == ["maze-00001.mp4"]
    assert not (out / "results.json").exists()  # the first process judges
    monkeypatch.setenv("RANK", "0")
    assert evaluate(folders["Wan2.2-TI2V-5B"], data, out, *options) == 0
    assert json.loads((out / "results.json").read_text())[0]["num_missing"] == 0


def test_the_first_process_waits_for_the_others(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(command, "_POLL_SECONDS", 0.01)
    late = tmp_path / "late.mp4"
    timer = threading.Timer(0.1, late.touch)
    timer.start()
    command.wait_for([late])
    assert late.exists()
    timer.join()


@pytest.fixture(scope="module")
def generators(folders: Folders) -> dict[str, Generator]:
    """Of every kind, with two steps."""
    return {name: load_pipeline(str(path), steps=2, height=HEIGHT, width=WIDTH) for name, path in folders.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_video_depends_on_its_own_seed_prompt_and_image(name: str, generators: dict[str, Generator]) -> None:
    """And not on what is generated with it, nor before it."""
    generator = generators[name]
    video = generator(PICTURE, "solve", 3, FRAMES)
    assert video.dtype == np.uint8
    other, again = generator.samples(Image.fromarray(PICTURE), "solve", [4, 3], FRAMES)
    assert alike(video, again)
    for changed in (other, generator(PICTURE, "other", 3, FRAMES), generator(255 - PICTURE, "solve", 3, FRAMES)):
        assert (changed != video).mean() > 0.1


def test_every_step_is_told(generators: dict[str, Generator]) -> None:
    for generator in generators.values():
        steps: list[int] = []
        generator.samples(PICTURE, "solve", [0], 5, lambda steps=steps: steps.append(1))
        assert len(steps) == 2


def test_puzzles_share_no_noise() -> None:
    seeds = {
        command.noise_seed(f"{task}-{i:05d}", seed) for task in puzzles.ROOMS for i in range(50) for seed in range(4)
    }
    assert len(seeds) == 600
    assert max(seeds) < 2**63


def test_shift_and_prompts_reach_the_pipeline(folders: Folders) -> None:
    folder = folders["Wan2.2-TI2V-5B"]
    options: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}
    generator = load_pipeline(str(folder), steps=2, guidance=3.0, negative_prompt="dull", shift=2.0, **options)
    expected = diffusers.WanImageToVideoPipeline.from_pretrained(folder)
    expected.scheduler = type(expected.scheduler).from_config(expected.scheduler.config, flow_shift=2.0)
    frames = expected(
        Image.fromarray(PICTURE), "solve", "dull", num_inference_steps=2, guidance_scale=3.0, output_type="np",
        generator=torch.Generator().manual_seed(1), **options,
    ).frames[0]  # fmt: skip
    assert alike(generator(PICTURE, "solve", 1), (255 * frames).round().astype(np.uint8))


def test_half_precision_is_the_model_cards(folders: Folders) -> None:
    dtypes = {"Wan2.2-TI2V-5B": torch.float32, "CogVideoX1.5-5B-I2V": torch.bfloat16, "HunyuanVideo-I2V": torch.float16}
    for name, vae in dtypes.items():
        spec = specify(str(folders[name]), dtype="bfloat16")
        assert (spec.dtypes["default"], spec.dtypes.get("vae", spec.dtypes["default"])) == (torch.bfloat16, vae)
    generator = load_pipeline(str(folders["Wan2.2-TI2V-5B"]), dtype="bfloat16", steps=1)
    assert generator.pipeline.vae.dtype == torch.float32
    assert generator.pipeline.transformer.dtype == generator.pipeline.text_encoder.dtype == torch.bfloat16
    assert generator(PICTURE, "solve", 0, 5).shape == (5, HEIGHT, WIDTH, 3)


def test_our_own_export_is_a_model_like_any(folders: Folders, generators: dict[str, Generator], tmp_path: Path) -> None:
    source = folders["Wan2.2-TI2V-5B"]
    export_pipeline(source, load_transformer(source, torch.device("cpu"), torch.float32), tmp_path / "export")
    exported = load_pipeline(str(tmp_path / "export"), steps=2)
    assert alike(exported(PICTURE, "solve", 3, FRAMES), generators["Wan2.2-TI2V-5B"](PICTURE, "solve", 3, FRAMES))


# LoRA: Wan-R1 and VBVR-Wan2.2-diffsynth are of these kinds.


def adapters(folder: Path, component: str = "transformer") -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of rank 2 for every linear layer of attention and feed-forward: A (rank, in) and B (out, rank)."""
    torch.manual_seed(7)
    weights = {k: v for path in (folder / component).glob("*.safetensors") for k, v in load_file(path).items()}
    layers = [name.removesuffix(".weight") for name, w in weights.items() if name.startswith("blocks.") and w.ndim == 2]
    linear = {name: weights[f"{name}.weight"] for name in sorted(layers) if "scale_shift" not in name}
    return {name: (torch.randn(2, w.shape[1]), 0.2 * torch.randn(w.shape[0], 2)) for name, w in linear.items()}


def diffsynth(lora: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As DiffSynth-Studio names it: Wan's own names, without a prefix."""
    names = {"lora_down.weight": "lora_A.default.weight", "lora_up.weight": "lora_B.default.weight"}
    state = {key.removeprefix("diffusion_model."): tensor for key, tensor in comfyui_lora(lora, 2.0).items()}
    for old, new in names.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return {key: tensor for key, tensor in state.items() if not key.endswith(".alpha")}


FORMATS = {
    "diffusers": lambda lora: diffusers_lora(lora, 2.0),
    "comfyui": lambda lora: comfyui_lora(lora, 2.0),
    "diffsynth": diffsynth,
}


@pytest.fixture(scope="module")
def merged(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The video of a whole folder whose weights hold the adapters already: Wan-R1 as a fine-tune."""
    source = folders["Wan2.2-TI2V-5B"]
    dit = load_transformer(source, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for name, (a, b) in adapters(source).items():
            dit.get_parameter(f"{name}.weight").add_(b @ a)
    folder = tmp_path_factory.mktemp("fine-tuned") / "model"
    export_pipeline(source, dit, folder)
    return load_pipeline(str(folder), steps=2)(PICTURE, "solve", 3, FRAMES)


@pytest.mark.parametrize("form", FORMATS)
def test_a_lora_is_the_fine_tune_it_stands_for(
    form: str, folders: Folders, generators: dict[str, Generator], merged: np.ndarray, tmp_path: Path
) -> None:
    source = folders["Wan2.2-TI2V-5B"]
    save_file(FORMATS[form](adapters(source)), tmp_path / LORA_FILE)
    lora = tmp_path if form == "diffusers" else tmp_path / LORA_FILE
    video = load_pipeline(str(source), lora=lora, steps=2)(PICTURE, "solve", 3, FRAMES)
    assert alike(video, merged)
    assert (generators["Wan2.2-TI2V-5B"](PICTURE, "solve", 3, FRAMES) != video).mean() > 0.1


def test_each_expert_has_a_lora_of_its_own(folders: Folders, generators: dict[str, Generator], tmp_path: Path) -> None:
    source = folders["Wan2.2-I2V-A14B"]
    for component in ("transformer", "transformer_2"):
        save_file(diffsynth(adapters(source, component)), tmp_path / f"{component}.safetensors")
    first, second = tmp_path / "transformer.safetensors", tmp_path / "transformer_2.safetensors"
    plain = generators["Wan2.2-I2V-A14B"](PICTURE, "solve", 3, FRAMES)
    videos = [
        load_pipeline(str(source), lora=lora, lora_2=lora_2, steps=2)(PICTURE, "solve", 3, FRAMES)
        for lora, lora_2 in ((first, second), (first, None), (None, second))
    ]
    for i, video in enumerate(videos):
        assert all((video != other).any() for other in [plain, *videos[:i]])


def test_what_is_no_lora_for_the_model_is_refused(folders: Folders, tmp_path: Path) -> None:
    def refused(lora: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_pipeline(str(folders["Wan2.2-TI2V-5B"]), lora=lora)

    for name in ("pickle.bin", "pickle.pt"):
        (tmp_path / name).write_bytes(b"never read")
        refused(tmp_path / name, "no .safetensors file")
    refused(tmp_path / "absent.safetensors", "does not exist")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    refused(tmp_path / "cut.safetensors", "cannot be read as safetensors")
    lora = adapters(folders["Wan2.2-TI2V-5B"])
    elsewhere = {name.replace("blocks.1.", "blocks.7."): pair for name, pair in lora.items()}
    wider = {name: (torch.randn(2, 8), b) for name, (_, b) in lora.items()}
    nameless = {f"other.{name}": tensor for name, tensor in diffusers_lora(lora, 2.0).items()}
    for name, state, message in (
        ("elsewhere", diffusers_lora(elsewhere, 2.0), "of which the model has"),
        ("wider", diffusers_lora(wider, 2.0), "does not fit the model"),
        ("nameless", nameless, "of which the model has 0"),
        ("empty", {"note": torch.zeros(1)}, "does not fit the model"),
    ):
        save_file(state, tmp_path / f"{name}.safetensors")
        refused(tmp_path / f"{name}.safetensors", message)
    with pytest.raises(UserError, match=r"second expert, which .* lacks"):
        specify(str(folders["Wan2.2-TI2V-5B"]), lora_2=tmp_path / "elsewhere.safetensors")


# Sizes.


@pytest.mark.parametrize(
    ("family", "shown", "generated"),
    [
        (WAN_TI2V, (480, 832), (480, 832)),
        (WAN_TI2V, (1024, 1024), (928, 928)),
        (WAN_TI2V, (720, 1280), (704, 1248)),  # 720 is no multiple of 32
        (WAN_EXPERTS, (720, 1280), (720, 1280)),
        (WAN_EXPERTS, (480, 832), (480, 832)),
        (HUNYUAN, (480, 832), (480, 832)),
        (COGVIDEOX, (480, 832), (768, 1328)),
        (COGVIDEOX, (512, 512), (768, 768)),
        (COGVIDEOX, (832, 480), (1328, 768)),
        (COGVIDEOX, (100, 1000), (768, 1360)),
        (dataclasses.replace(COGVIDEOX, limits=(768, 1360)), (832, 480), (768, 768)),
    ],
)
def test_a_model_generates_at_the_images_size_or_its_own_nearest(family: Any, shown: Any, generated: Any) -> None:
    assert family.size_for(*shown) == generated
    assert family.allows(*generated)


def test_frames_are_the_nearest_number_that_a_model_makes() -> None:
    assert [WAN_TI2V.frames_for(n) for n in (1, 5, 6, 81, 1000)] == [5, 5, 5, 81, 121]
    assert [COGVIDEOX.frames_for(n) for n in (5, 25, 81, 1000)] == [17, 33, 81, 161]
    assert HUNYUAN.frames_for(81) == 81


def test_letterbox() -> None:
    """The whole image, as large as it can be, in the middle of the background; then without it."""
    image = Image.fromarray(np.full((30, 90, 3), 200, np.uint8))
    frame, box = fit(image, 64, 128)
    pixels = np.array(frame)
    assert pixels.shape == (64, 128, 3)
    assert box == (11, 0, 42, 128)
    assert (pixels[box.top : box.top + box.height] == 200).all()
    assert (np.delete(pixels, np.s_[11:53], axis=0) == puzzles.board.BACKGROUND).all()
    assert cut(pixels[None], box).shape == (1, 42, 128, 3)
    assert fit(frame, 64, 128)[0] is frame
    assert fit(Image.new("RGB", (1, 500)), 32, 64)[1] == (0, 31, 32, 2)


def test_a_solution_at_another_size_stays_one(tmp_path: Path) -> None:
    """Full-size videos through CogVideoX1.5's frame, its bars cut off, H.264 and the judge."""
    dataset.build(tmp_path / "data", 0, 1, 3, tasks=["flowfree", "sokoban"], workers=1)
    items = read_items(tmp_path / "data")
    (tmp_path / "videos").mkdir()
    for item in items:
        room = puzzles.room_of(item.puzzle)
        moves = len(room.states(item.puzzle, item.puzzle.solution))
        framed = [
            fit(Image.fromarray(frame), *COGVIDEOX.size_for(480, 832))
            for frame in puzzles.render(item.puzzle, 480, 832, moves + 1, 1)
        ]
        video_TYXC = cut(np.stack([frame for frame, _ in framed]), framed[0][1])
        assert video_TYXC.shape[1:] == (766, 1328, 3)
        write_mp4(tmp_path / f"videos/{item.id}.mp4", video_TYXC, COGVIDEOX.fps)
    assert [outcome.verdict.solved for outcome in judge_folder(tmp_path / "videos", items)] == [True, True]


# What is refused, each in one line.


def test_options_that_do_not_fit_are_refused(folders: Folders, tmp_path: Path) -> None:
    wan, cog, hunyuan = (str(folders[name]) for name in ("Wan2.2-TI2V-5B", "CogVideoX1.5-5B-I2V", "HunyuanVideo-I2V"))
    for model, options, message in (
        (wan, {"height": 720, "width": 1280}, "height=720 must be a multiple of 32 for Wan2.2-TI2V-5B; use 704"),
        (wan, {"height": 480}, "belong together"),
        (wan, {"num_frames": 80}, r"num_frames=80 must be 1 \+ 4k for Wan2.2-TI2V-5B; use 81"),
        (cog, {"num_frames": 85}, "num_frames=85 must be 1 .* use 81"),
        (cog, {"height": 1360, "width": 768}, "1360x768 exceeds 768x1360"),
        (cog, {"shift": 5.0}, "shift=5.0 does not fit"),
        (wan, {"shift": 0.0}, "shift=0.0 does not fit"),
        (hunyuan, {"negative_prompt": "dull"}, "negative_prompt does nothing"),
        (wan, {"steps": 0}, "steps=0 must be at least 1"),
        (wan, {"device": "nowhere"}, "device=nowhere cannot be used"),
        (wan, {"device": "cpu", "offload": "model"}, "the device is the CPU"),
        ("no/such/folder", {}, "neither a folder nor a hub's id"),
        ("../..", {}, "model_index.json|neither"),
        ("nobody/nothing", {}, "cannot be downloaded"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            specify(model, **options)
        assert "\n" not in str(caught.value)


def test_other_models_are_refused_with_a_list(tmp_path: Path) -> None:
    """Text-to-video models, first versions of systems, a pipeline of another kind, and what is no model's index."""
    model = make_wan_folder(tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    for changes in (
        {"expand_timesteps": False},
        {"_class_name": "LTXImageToVideoPipeline"},
        {"_class_name": ["custom_file", "Pipeline"]},
        {"_class_name": "CogVideoXImageToVideoPipeline"},
    ):
        edit_json(model / "model_index.json", **index | changes)
        with pytest.raises(UserError, match=r"Wan2.2-TI2V-5B .*CogVideoX1.5-5B-I2V .*HunyuanVideo-I2V") as caught:
            specify(str(model))
        assert "\n" not in str(caught.value)
    for family, first_version in (
        (COGVIDEOX, {"patch_size_t": None}),
        (HUNYUAN, {"image_condition_type": "latent_concat"}),
    ):
        with pytest.raises(UserError, match="use a model of one of these"):
            family_of("first", {"_class_name": family.pipeline}, {"_class_name": family.transformer} | first_version)
    edit_json(model / "model_index.json", **index | {"_class_name": "WanPipeline"})
    assert specify(str(model)).family is WAN_TI2V  # as its published folder is named
    for text in ("[]", "{", ""):
        (model / "model_index.json").write_text(text)
        with pytest.raises(UserError, match=r"holds no object|cannot be read"):
            specify(str(model))


def test_nothing_of_a_models_own_is_executed(folders: Folders, tmp_path: Path) -> None:
    """Components of another library, or of code in the folder, and weights that are pickles."""
    model = make_wan_folder(tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    entries = [[library, *rest] for library in ("mine", "os", "antigravity") for rest in (["system"], [], ["a", "b"])]
    for scheduler in (*entries, [["os"], "system"], ["diffusers", None]):
        edit_json(model / "model_index.json", **index | {"scheduler": scheduler})
        with pytest.raises(UserError, match="only classes of diffusers and transformers"):
            load_pipeline(str(model))
    edit_json(model / "model_index.json", **index | {"../elsewhere": ["diffusers", "UniPCMultistepScheduler"]})
    with pytest.raises(UserError, match="only classes of diffusers and transformers"):
        load_pipeline(str(model))
    (model / "model_index.json").write_text(json.dumps(index))
    code, ran = model / "transformer/diffusers.py", tmp_path / "ran"
    code.write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(UserError, match="only classes of diffusers and transformers"):
        load_pipeline(str(model))
    code.unlink()
    for path in (model / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match="cannot be loaded as a WanImageToVideoPipeline of safetensors"):
        load_pipeline(str(model))
    assert not ran.exists()


def test_running_out_of_memory_tells_what_to_turn_down(generators: dict[str, Generator], monkeypatch: Any) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    generator = dataclasses.replace(generators["Wan2.2-TI2V-5B"], pipeline=exhausted)
    with pytest.raises(UserError, match=r"2 x 81 frames of 32x64; use --offload model .* --batch_size 1"):
        generator.samples(PICTURE, "solve", [0, 1])
    with pytest.raises(ZeroDivisionError), enough_memory("bugs"):
        raise ZeroDivisionError


def test_numbers_that_are_none_are_no_video(generators: dict[str, Generator], monkeypatch: Any) -> None:
    class Broken:
        frames = np.full((1, 5, HEIGHT, WIDTH, 3), np.nan, np.float32)

    generator = dataclasses.replace(generators["Wan2.2-TI2V-5B"], pipeline=lambda **_: Broken())
    with pytest.raises(UserError, match="pixels that are no numbers; use --dtype float32"):
        generator(PICTURE, "solve", 0)
