"""The text encoder against diffusers' own pipeline, on a tiny model of the real classes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vrlvr.errors import UserError
from vrlvr.models.umt5 import NUM_TOKENS, UMT5TextEncoder, clean

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.pipelines.wan.pipeline_wan import prompt_clean  # noqa: E402
from wan_folder import TEXT_DIM, edit_json, make_wan_folder  # noqa: E402

CPU = torch.device("cpu")
PROMPTS = [
    "A maze of 4 by 5 square cells, seen from above.",
    "  white \t space \n, an &amp;amp; entity, schÃ¶n broken letters and a curly “quote” ",
    "",
    "a prompt that is longer than the limit " * 20,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan"), max_shard_size="1GB")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_pipelines_encode_prompt(folder: Path, dtype: torch.dtype) -> None:
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(folder, torch_dtype=dtype)
    encoder = UMT5TextEncoder.from_pretrained(folder, CPU, dtype)
    for prompt in PROMPTS:
        with torch.no_grad():
            expected, _ = pipeline.encode_prompt(
                prompt, do_classifier_free_guidance=False, max_sequence_length=NUM_TOKENS
            )
        text = encoder.encode([prompt])
        assert text.dtype == dtype
        assert text.shape == (1, 512, TEXT_DIM)
        assert torch.equal(text, expected)


def test_a_prompt_does_not_depend_on_its_batch_nor_on_the_padding(folder: Path) -> None:
    encoder = UMT5TextEncoder.from_pretrained(folder, CPU, torch.float32)
    together = encoder.encode(PROMPTS[:3], num_tokens=128)
    for prompt, text in zip(PROMPTS, together, strict=False):
        length = len(encoder.tokenizer(clean(prompt)).input_ids)
        assert (text[:length].abs().amax(dim=1) > 0.01).all()
        assert not text[length:].any()
        torch.testing.assert_close(encoder.encode([prompt])[0, :length], text[:length], atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(PROMPTS))
def test_clean_is_the_pipelines_prompt_clean(text: str) -> None:
    assert clean(text) == prompt_clean(text)


def test_the_encoder_is_frozen(folder: Path) -> None:
    encoder = UMT5TextEncoder.from_pretrained(folder, CPU, torch.float32)
    assert not any(parameter.requires_grad for parameter in encoder.encoder.parameters())
    assert not encoder.encode(["a"]).requires_grad


def test_a_missing_weight_is_told(folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "wan"))
    path = broken / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight; download"):
        UMT5TextEncoder.from_pretrained(broken, CPU, torch.float32)


def test_the_embedding_table_is_there_where_transformers_leaves_it_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions 5.0 to 5.2 do with the published folders, which hold shared.weight alone and tie_word_embeddings=false."""
    expected = UMT5TextEncoder.from_pretrained(folder, CPU, torch.float32).encode(PROMPTS[:1], 64)
    load = transformers.UMT5EncoderModel.from_pretrained

    def untied(*arguments: Any, **options: Any) -> Any:
        encoder, loaded = load(*arguments, **options)
        encoder.encoder.embed_tokens = torch.nn.Embedding(*encoder.shared.weight.shape)
        return encoder, {**loaded, "missing_keys": {"encoder.embed_tokens.weight"}}

    monkeypatch.setattr(transformers.UMT5EncoderModel, "from_pretrained", untied)
    assert torch.equal(UMT5TextEncoder.from_pretrained(folder, CPU, torch.float32).encode(PROMPTS[:1], 64), expected)


def test_no_code_of_the_folder_is_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = Path(shutil.copytree(folder, tmp_path / "wan"))
    (hostile / "tokenizer" / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import T5TokenizerFast as Evil\n"
    )
    edit_json(
        hostile / "tokenizer" / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": [None, "evil.Evil"]},
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a user who trusts everyone
    with pytest.raises(UserError, match=r"has no readable text encoder .*trust_remote_code"):
        UMT5TextEncoder.from_pretrained(hostile, CPU, torch.float32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", ["tokenizer", "text_encoder", "text_encoder/model.safetensors"])
def test_a_folder_without_text_encoder_gets_one_line(folder: Path, tmp_path: Path, missing: str) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "wan"))
    if (broken / missing).is_dir():
        shutil.rmtree(broken / missing)
    else:
        (broken / missing).unlink()
    with pytest.raises(UserError, match=r"has no readable text encoder .* download the model again") as error:
        UMT5TextEncoder.from_pretrained(broken, CPU, torch.float32)
    assert "\n" not in str(error.value)
