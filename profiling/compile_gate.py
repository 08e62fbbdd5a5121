"""Compiles every kernel for GPUs that need not be there, and refuses what would be slow.

    python profiling/compile_gate.py [--arch 80,90,100] [--json FILE] [--cases FILE.py]

The launching functions of `kernel_cases` are called on meta tensors under a Triton driver that names the wanted GPU; each
launch is compiled as it would be there (same signature, divisibility, warps) instead of being run. Exit code 1, with one
line an offence on standard error, for a kernel that

- spills registers or has a stack frame (by ptxas), or loads or stores local memory (by its machine code): both go through
  memory what should stay in registers;
- accesses global memory in less than 16 bytes at a time, but for the pointers that its case names with a reason;
- updates global memory atomically: sums then depend on the order of programs.
"""

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from kernel_cases import CASES, Case

from vrlvr_kernels.optional_triton import HAS_TRITON

ARCHS = (80, 90, 100)  # A100, H100 and H200, B200
WIDE = 16  # bytes a thread moves by the widest access that all three have
REGISTERS, WARPS, CTAS = 65536, 64, 32  # of a multiprocessor of these three

_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
_GLOBAL = re.compile(r"\b(LDGSTS|LDG|STG)\b((?:\.\w+)*)")
_LOCAL = re.compile(r"\b(?:LDL|STL)\b")
_ATOMIC = re.compile(r"\b(?:ATOM|ATOMG|RED|REDG)\b")
_USAGE = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Access:
    """One instruction on global memory. bytes: what one thread moves by it. file, line: of the kernel's source."""

    kind: str
    bytes: int
    file: str
    line: int


@dataclass(frozen=True)
class Report:
    """What one kernel became. ctas: how many a multiprocessor can hold, by registers and warps alone."""

    case: str
    kernel: str
    arch: int
    warps: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    local_accesses: int
    atomics: int
    wide_accesses: int
    narrow: tuple[Access, ...]
    ctas: int
    offences: tuple[str, ...]


def global_accesses(sass: str) -> list[Access]:
    """Loads and stores of global memory in a disassembly with line information (nvdisasm -g)."""
    found, file, line = [], "", 0
    for text in sass.splitlines():
        if place := _LINE.search(text):
            file, line = place[1], int(place[2])
        elif access := _GLOBAL.search(text):
            flags = access[2].split(".")
            bits = next((int(flag.lstrip("US")) for flag in flags if re.fullmatch(r"[US](8|16)|64|128|256", flag)), 32)
            found.append(Access("store" if access[1] == "STG" else "load", bits // 8, file, line))
    return found


@lru_cache(maxsize=64)
def _nodes(file: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))


def _around(access: Access, kind: type[ast.expr] | type[ast.stmt]) -> list[Any]:
    nodes: list[Any] = [node for node in _nodes(access.file) if isinstance(node, kind)]
    return [node for node in nodes if node.lineno <= access.line <= node.end_lineno]


def addresses(access: Access) -> list[str]:
    """The address of each load, or store, that the source has on the access's line.

    Without one, the name of the kernel function there: ptxas may load only the part of a word that is used, and names the line
    that uses it.
    """
    calls = [call for call in _around(access, ast.Call) if isinstance(call.func, ast.Attribute) and call.args]
    found = [ast.unparse(call.args[0]) for call in calls if call.func.attr == access.kind]
    return found or [function.name for function in _around(access, ast.FunctionDef)[-1:]]


def is_expected(access: Access, names: Collection[str]) -> bool:
    """Whether every load (or store) on the access's source line goes through one of these pointers.

    A pointer is what its address starts with, as `x` of `x + row * D + column`.
    """
    found = [address.split(" + ")[0] for address in addresses(access)]
    return bool(found) and all(name in names for name in found)


def resident_ctas(registers: int, warps: int) -> int:
    """Programs a multiprocessor holds at once; a warp gets registers in units of 256."""
    return min(REGISTERS // (-(-registers * 32 // 256) * 256 * warps), WARPS // warps, CTAS)


def report(case: Case, arch: int, name: str, warps: int, shared_bytes: int, ptxas_log: str, sass: str) -> Report:
    usage, registers = _USAGE.search(ptxas_log), _REGISTERS.search(ptxas_log)
    if usage is None or registers is None:
        raise RuntimeError(f"ptxas told nothing of {name}'s registers and spills: {ptxas_log!r}")
    stack, spill = int(usage[1]), int(usage[2]) + int(usage[3])
    local, atomics, accesses = len(_LOCAL.findall(sass)), len(_ATOMIC.findall(sass)), global_accesses(sass)
    narrow = tuple(access for access in accesses if access.bytes < WIDE)
    offences = []
    if not accesses:
        offences.append("no global access found in its machine code")
    if spill:
        offences.append(f"{spill} bytes of spills ({registers[1]} registers, {warps} warps)")
    if stack:
        offences.append(f"a stack frame of {stack} bytes")
    if local:
        offences.append(f"{local} loads and stores of local memory")
    if atomics:
        offences.append(f"{atomics} atomic updates")
    for access in sorted(set(narrow), key=lambda a: (a.file, a.line, a.kind, a.bytes)):
        if not is_expected(access, case.narrow):
            source = " and ".join(addresses(access)) or "an unknown address"
            place = f"{Path(access.file).name}:{access.line}"
            offences.append(f"{narrow.count(access)} {access.kind}s of {access.bytes} bytes at {place}: {source}")
    return Report(
        case=case.name,
        kernel=name.strip("_"),
        arch=arch,
        warps=warps,
        registers=int(registers[1]),
        shared_bytes=shared_bytes,
        stack_bytes=stack,
        spill_bytes=spill,
        local_accesses=local,
        atomics=atomics,
        wide_accesses=len(accesses) - len(narrow),
        narrow=narrow,
        ctas=resident_ctas(int(registers[1]), warps),
        offences=tuple(offences),
    )


class _Driver:
    """As much of a Triton driver as compiling asks for. device: any key; Triton keeps compiled kernels apart by it."""

    def __init__(self, arch: int, device: object) -> None:
        self._arch, self._device = arch, device

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> object:
        return self._device

    def get_current_stream(self, device: object) -> int:
        return 0


@contextlib.contextmanager
def _launches_compile(case: Case, arch: int) -> Iterator[list[tuple[Any, str]]]:
    """Within it, launching a kernel appends (compiled kernel, ptxas's log) to the list, once for each that differs."""
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled: list[tuple[Any, str]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as log:
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if all(kernel is not other for other, _ in compiled):
            compiled.append((kernel, log.getvalue()))
        return kernel

    driver.set_active(_Driver(arch, (case.name, arch)))
    knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = (
        True  # a cached kernel would come without ptxas's log
    )
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run


def disassemble(cubin: bytes) -> str:
    """Machine code with source lines, by the disassembler that comes with Triton."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-g", "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_case(case: Case, arch: int) -> list[Report]:
    """One report for each kernel that the case launches. Raises what the compiler raises."""
    try:
        with _launches_compile(case, arch) as compiled:
            case.launch()
    except Exception as error:
        error.add_note(f"while compiling {case.name} for sm_{arch}")
        raise
    if not compiled:
        raise RuntimeError(f"{case.name} launches no kernel")
    return [
        report(case, arch, k.metadata.name, k.metadata.num_warps, k.metadata.shared, log, disassemble(k.asm["cubin"]))
        for k, log in compiled
    ]


def table(reports: list[Report]) -> str:
    heads = ["kernel", "sm", "warps", "regs", "shared", "stack", "spills", "local", "wide", "narrow", "CTAs/SM"]
    rows = [
        [
            r.case if r.case == r.kernel else f"{r.case}/{r.kernel}",
            *map(str, (r.arch, r.warps, r.registers, r.shared_bytes, r.stack_bytes, r.spill_bytes, r.local_accesses)),
            *map(str, (r.wide_accesses, len(r.narrow), r.ctas)),
        ]
        for r in reports
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in [heads, *rows]
    )


def load_cases(path: Path) -> list[Case]:
    """CASES of a Python file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--cases {path} must be a Python file with a list CASES")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default=",".join(map(str, ARCHS)), help="compute capabilities, comma separated")
    parser.add_argument("--json", type=Path, help="write the reports there")
    parser.add_argument(
        "--cases", type=Path, help="a Python file whose list CASES takes the place of kernel_cases.py's"
    )
    options = parser.parse_args(argv)
    if not HAS_TRITON:
        print(
            "the compile gate needs Triton (Linux), which is not installed: pip install 'triton>=3.6,<3.8'",
            file=sys.stderr,
        )
        return 2
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        print("TRITON_INTERPRET is set: kernels would be interpreted, not compiled; unset it", file=sys.stderr)
        return 2
    archs = [int(arch) for arch in options.arch.split(",")]
    cases = CASES if options.cases is None else load_cases(options.cases)
    pairs = list(product(cases, archs))
    # Forked, so that torch is imported once and a case needs no pickling.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork"), _share, (pairs,)) as pool:
        reports = [r for found in pool.map(_compile_pair, range(len(pairs))) for r in found]
    print(table(reports))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in reports], indent=1) + "\n", encoding="utf-8")
    offences = [f"{r.case}/{r.kernel} sm_{r.arch}: {offence}" for r in reports for offence in r.offences]
    for line in offences:
        print(line, file=sys.stderr)
    print(f"{len(reports)} kernels compiled, {len(offences)} offences")
    return 1 if offences else 0


_pairs: list[tuple[Case, int]] = []


def _share(pairs: list[tuple[Case, int]]) -> None:
    _pairs.extend(pairs)


def _compile_pair(index: int) -> list[Report]:
    return compile_case(*_pairs[index])


if __name__ == "__main__":
    sys.exit(main())
