"""profiling/compile_gate.py: no kernel spills or makes narrow accesses, and planted ones show that the gate can tell."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from vrlvr_kernels.optional_triton import HAS_TRITON

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "profiling" / "compile_gate.py"
BAD_KERNELS = Path(__file__).parent / "assets" / "bad_kernels.py"

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return __import__("compile_gate")


def run(tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, without the interpreter that tests run kernels by, and with a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *options]
    environment = kept | {"TRITON_CACHE_DIR": str(tmp_path / "cache")} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(BAD_KERNELS.read_text().splitlines(), 1) if text in line)


@needs_triton
def test_no_kernel_is_bad(tmp_path: Path) -> None:
    out = tmp_path / "gate.json"
    result = run(tmp_path, "--json", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    reports = json.loads(out.read_text())
    assert {report["arch"] for report in reports} == {80, 90, 100}
    assert all(report["ctas"] >= 1 and report["wide_accesses"] >= 1 for report in reports)
    assert len(result.stdout.splitlines()) == 1 + len(reports) + 1


@needs_triton
def test_planted_kernels_are_refused(tmp_path: Path) -> None:
    """Each for its own reason, on each GPU; the good one is not."""
    out = tmp_path / "gate.json"
    result = run(tmp_path, "--cases", str(BAD_KERNELS), "--json", str(out))
    assert result.returncode == 1
    found = defaultdict(list)
    for report in json.loads(out.read_text()):
        found[report["case"]].append((report["arch"], report["offences"]))
    for case, told in {
        "spills": ["bytes of spills", "stack frame", "local memory"],
        "narrow": [f"loads of 2 bytes at bad_kernels.py:{line_of('x + offset')}: x + offset + at"],
        "unlisted": [f"1 loads of 4 bytes at bad_kernels.py:{line_of('load(scale)')}: scale"],
        "local_memory": ["stack frame", "local memory"],
        "atomic": ["atomic"],
    }.items():
        assert [arch for arch, _ in found[case]] == [80, 90, 100]
        for _, offences in found[case]:
            assert all(any(part in offence for offence in offences) for part in told), (case, offences)
    assert [offences for _, offences in found["good"]] == [[], [], []]
    assert "spill" not in str(found["local_memory"])
    lines = result.stderr.splitlines()
    assert sum(line.startswith("unlisted/good sm_90: 1 loads of 4 bytes") for line in lines) == 1
    assert len(lines) == sum(len(offences) for reports in found.values() for _, offences in reports)


@needs_triton
def test_an_interpreted_run_is_refused_in_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert "unset it" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_triton_it_says_so(
    gate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gate, "HAS_TRITON", False)
    assert gate.main([]) == 2
    assert "pip install" in capsys.readouterr().err


def test_widths_and_places_are_read_from_machine_code(gate: ModuleType) -> None:
    sass = """
    //## File "/k.py", line 7
        /*0090*/                   LDG.E R4, desc[UR4][R4.64] ;
        /*01e0*/              @!P0 LDG.E.U16 R0, desc[UR4][R12.64] ;
        /*01e0*/              @!P0 LDG.E.S8.CONSTANT R0, desc[UR4][R12.64] ;
    //## File "/k.py", line 9 inlined at "/k.py", line 3
        /*0100*/                   LDGSTS.E.BYPASS.LTC128B.128 [R9], [R2.64] ;
        /*0260*/              @!P0 LDG.E.64 R4, desc[UR4][R10.64] ;
        /*0310*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*0320*/                   LDC.64 R2, c[0x0][0x228] ;
    """
    found = [(access.kind, access.bytes, access.line) for access in gate.global_accesses(sass)]
    assert found == [("load", 4, 7), ("load", 2, 7), ("load", 1, 7), ("load", 16, 9), ("load", 8, 9), ("store", 16, 9)]


def test_an_address_is_known_by_its_pointer(gate: ModuleType, tmp_path: Path) -> None:
    """By what it starts with, not by a name that occurs in it; all loads of a line must be expected, stores are apart.
    On a line without any (the 8th) it is known by the function."""
    source = tmp_path / "kernel.py"
    store = "tl.store(\n    out[0] + at,\n    b,\n)"
    source.write_text(f"a = load(0)\nb = tl.load(x + shift + at) * tl.load(scale)\n{store}\ndef f():\n    pass\n")

    def expected(kind: str, line: int, *names: str) -> bool:
        return gate.is_expected(gate.Access(kind, 4, str(source), line), names)

    assert expected("load", 2, "x", "scale")
    assert not expected("load", 2, "scale", "shift", "at")
    assert not expected("load", 2, "x")
    assert expected("store", 3, "out[0]")
    assert expected("store", 5, "out[0]")
    assert not expected("store", 2, "x", "scale")
    assert not expected("load", 1, "a", "0")
    assert expected("load", 8, "f")
    assert not expected("load", 8, "g")


def test_resident_ctas(gate: ModuleType) -> None:
    assert gate.resident_ctas(64, 8) == 4
    assert gate.resident_ctas(255, 8) == 1
    assert gate.resident_ctas(32, 8) == 8  # by warps
    assert gate.resident_ctas(16, 1) == 32  # by blocks
    assert gate.resident_ctas(65, 8) == 3  # 65 * 32 registers take nine units of 256
