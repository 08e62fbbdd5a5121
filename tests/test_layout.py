"""The tree: who imports whom, names that hide nothing, and what lies at the top."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from vrlvr import __version__, options
from vrlvr.config import Config

ROOT = Path(__file__).parents[1]
TOP = {"README.md", "setup.py", "CHANGELOG.md", "CONTRIBUTING.md", "RESULTS.md", "LICENSE", "pyproject.toml"}
TOP |= {".gitignore", ".ci", "configs", "kernels", "vrlvr", "profiling", "tests"}
SOURCES = sorted([*ROOT.glob("vrlvr/**/*.py"), *ROOT.glob("kernels/*.py")])
STAGES = {"vrlvr.sft", "vrlvr.grpo"}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, and of what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_kernels_import_torch_and_triton_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton", "vrlvr_kernels"}
    for path in ROOT.glob("kernels/*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_puzzles_import_numpy_and_themselves_only() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "vrlvr"}
    for path in ROOT.glob("vrlvr/puzzles/**/*.py"):
        names = imports(path)
        assert {name.split(".")[0] for name in names} <= allowed, path
        inside = {name for name in names if within(name, "vrlvr")}
        assert all(within(name, "vrlvr.puzzles") for name in inside - {"vrlvr"}), path


def test_puzzles_load_no_torch() -> None:
    code = "import sys, vrlvr.puzzles; print([name for name in ('torch', 'PIL', 'av', 'yaml') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_entry_imports_the_stages(path: Path) -> None:
    names = imports(path)
    if path.relative_to(ROOT).as_posix() != "vrlvr/train.py":
        assert not names & STAGES
    if path.relative_to(ROOT).as_posix() != "vrlvr/cli.py":
        assert not any(within(name, "vrlvr.train") for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reads_or_writes_pickles(path: Path) -> None:
    assert not imports(path) & {"pickle", "dill", "cloudpickle", "torch.load", "torch.save", "joblib", "shelve"}
    attributes = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)
    ]
    calls = {f"{node.value.id}.{node.attr}" for node in attributes if isinstance(node.value, ast.Name)}
    assert not calls & {"torch.load", "torch.save", "np.load", "np.save"}
    assert not {node.attr for node in attributes} & {"save_checkpoint", "load_checkpoint"}  # DeepSpeed's are pickles


def test_no_module_hides_another() -> None:
    """torchrun puts vrlvr/ itself first on sys.path, so its files are top-level modules there."""
    names = {path.stem for path in (ROOT / "vrlvr").iterdir() if path.suffix == ".py" or path.is_dir()} - {"__init__"}
    installed = set(packages_distributions()) - {"vrlvr", "vrlvr_kernels"}
    assert not names & set(sys.stdlib_module_names)
    assert not names & installed
    assert not (ROOT / "kernels" / "__init__.py").exists()  # else `import kernels` in the checkout would find it


def test_the_top_level_holds_what_it_should() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert top <= TOP
    assert {"README.md", "setup.py", "kernels", "vrlvr", "tests"} <= top


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_configs_parse(path: Path) -> None:
    config = options.parse(["--config", str(path)])
    if path.name == "tiny.yaml":
        assert config == Config()


def test_there_is_one_version() -> None:
    assert f'version="{__version__}"' in (ROOT / "setup.py").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
