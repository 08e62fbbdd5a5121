"""The MFU and attention scripts on a CPU at tiny sizes: rows, files, and a wrong backend that is not timed."""

import json
from dataclasses import replace
from pathlib import Path

import attention_backends
import mfu
import pytest
import torch
from sizes import SIZES, random_inputs, random_model
from timing import ceilings, median_seconds
from tiny_run import CPU

from vrlvr.models.dit import WanTransformer
from vrlvr.models.flops import total_flops


def test_shares_are_counted_flops_over_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mfu.json"
    options = ["--models", "ours,reference", "--tokens", "48", "--layers", "1", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["mfu.py", *options])
    assert mfu.main() == 0
    result = json.loads(out.read_text())
    assert [(row["model"], row["pass"]) for row in result["rows"]] == [
        (model, what) for model in ("ours", "reference") for what in ("forward", "forward+backward")
    ]
    one_layer = total_flops(replace(SIZES["tiny"].config, num_layers=1), 48, 8)
    (ours,) = (row for row in result["rows"] if "predicted_gib" in row and row["model"] == "ours")
    size = replace(SIZES["tiny"], config=replace(SIZES["tiny"].config, num_layers=1))
    weights = sum(p.numel() for p in random_model(lambda: WanTransformer(size.config), size, CPU).parameters())
    assert 2 * 4 * weights < ours["predicted_gib"] * 2**30 < 4 * 4 * weights
    for row in result["rows"]:
        assert row["layers"] == 1
        passes = {"forward": 1, "forward+backward": 3}[row["pass"]]
        assert row["tflops"] * row["ms"] * 1e9 == pytest.approx(passes * one_layer)
        assert row["share_of_matmul"] == pytest.approx(row["tflops"] / result["ceilings"]["matmul_tflops"])


@pytest.mark.parametrize("option", [("--tokens", "49"), ("--models", "theirs")])
def test_what_is_unknown_is_one_line(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mfu.py", *option])
    assert mfu.main() == 2
    assert option[1] in capsys.readouterr().err


def test_the_least_recomputation_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that only holds what full recomputation needs: the others run out of memory first."""
    tried = []

    def passing(call, device, repeats, warmup):
        call()
        return 1.0

    class Small(WanTransformer):
        def forward(self, *arguments):
            if torch.is_grad_enabled():
                tried.append(self.recompute)
                if self.recompute != "full":
                    raise torch.OutOfMemoryError
            return super().forward(*arguments)

    monkeypatch.setattr(mfu, "WanTransformer", Small)
    monkeypatch.setattr(mfu, "median_seconds", passing)
    monkeypatch.setattr(mfu, "predicted_gib", lambda *arguments: 1.0)
    rows = mfu.measure("ours", SIZES["tiny"], 48, 1, CPU, 1, 1.0)
    assert tried == ["none", "selective", "full"]
    assert [row["recompute"] for row in rows] == ["none", "full"]


def test_sizes_fit_their_tokens() -> None:
    for size in SIZES.values():
        for tokens, (_, frames, rows, columns) in size.latents.items():
            patch = size.config.patch_size
            assert tokens == (frames // patch[0]) * (rows // patch[1]) * (columns // patch[2])
    size = SIZES["tiny"]
    model = random_model(lambda: WanTransformer(size.config), size, CPU)
    velocity = model(*random_inputs(size, 96, 2, CPU), 1)
    assert velocity.shape == (2, *size.latents[96])
    assert velocity.abs().mean() > 0.01


def test_a_call_is_timed_after_its_warm_up() -> None:
    calls = []
    assert median_seconds(lambda: calls.append(1), CPU, repeats=4, warmup=3) >= 0
    assert len(calls) == 7
    assert ceilings(CPU)["matmul_tflops"] > 0


def test_attention_backends_are_checked_then_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "attention.json"
    monkeypatch.setattr("sys.argv", ["attention_backends.py", "--tokens", "40", "--repeats", "1", "--out", str(out)])
    assert attention_backends.main() == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["backend"] for row in rows] == ["flash", "math"]
    assert all(row["error"] < 1e-5 and row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in rows)

    real = attention_backends.attend

    def wrong(q, k, v, backend):
        return real(q, k, v, backend) * (1.001 if backend == "math" else float("nan"))

    monkeypatch.setattr(attention_backends, "attend", wrong)
    assert attention_backends.main() == 1
    for row in json.loads(out.read_text())["rows"]:
        assert "from float32" in row["problem"]
        assert "forward_ms" not in row

    def refuses(q, k, v, backend):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(attention_backends, "attend", refuses)
    assert attention_backends.main() == 1
    assert "no kernel image" in capsys.readouterr().out


def test_a_gradient_that_is_not_finite_is_found_in_any_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison looks at one head; the other heads must at least be finite."""
    real = attention_backends.attend

    def broken(q, k, v, backend):
        out = real(q, k, v, backend)
        scale = torch.ones(out.shape[2])
        scale[1:] = float("inf")
        return out * scale[:, None]

    monkeypatch.setattr(attention_backends, "attend", broken)
    row = attention_backends.measure("flash", 24, 2, 32, torch.float32, CPU, 1)
    assert row["problem"] == "output or gradients are not finite"
