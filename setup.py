"""Packaging of vrlvr: `pip install -e .` (the trainer), `pip install -e ".[test]"` (the tests)."""

from pathlib import Path

from setuptools import setup

PACKAGES = [
    "vrlvr",
    "vrlvr.puzzles",
    "vrlvr.puzzles.maze",
    "vrlvr.puzzles.flow_free",
    "vrlvr.puzzles.sokoban",
    "vrlvr.puzzles.second",
    "vrlvr.models",
    "vrlvr.evaluation",
    "vrlvr.foreign",
    "vrlvr.outside",
    "vrlvr.evaluation.corpus",
    "vrlvr.evaluation.providers",
    "vrlvr_kernels",
]

# transformers 5.0 to 5.2 load Wan's text encoder without its embedding table (huggingface/transformers #43880).
WAN = [
    "diffusers>=0.38,<0.43",
    "ftfy>=6",
    "peft>=0.18,<0.22",
    "transformers>=4.57,!=5.0.*,!=5.1.*,!=5.2.*,<6",
]
PROFILING = ["matplotlib>=3.8", "nvidia-ml-py>=12"]
TEST = [
    "pytest>=8",
    "pytest-benchmark>=5",
    "pytest-timeout>=2",
    "pytest-xdist>=3.6",
    "hypothesis>=6",
    "ruff",
    "mypy",
    "types-PyYAML",
]

# Nothing yet: `vrlvr eval provider` and `llm` speak the documented HTTP APIs by the standard library, one code path for all of
# them that the ledger of billed calls and the tests' server can rely on. Google's client no longer offers Veo by API key.
PROVIDERS: list[str] = []
DEEPSPEED = ["deepspeed>=0.19,<0.20"]

setup(
    name="vrlvr",
    version="0.1.0",
    description="Turns a video diffusion model into a verifiable reasoner: puzzles, SFT, SDE-GRPO with Early-Step Focus.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    # A top-level module named `kernels` would hide the Hugging Face package of that name.
    package_dir={"vrlvr_kernels": "kernels"},
    install_requires=[
        "torch>=2.11,<2.14",
        "triton>=3.6,<3.8; platform_system == 'Linux'",
        "numpy>=1.26,<3",
        # Older ones keep Python's interpreter lock while they write: for 5 GB longer than the heartbeat waits for a rank.
        "safetensors>=0.8",
        "av>=14",
        "pillow>=10",
        "jsonargparse>=4.49,<5",
        "pyyaml>=6",
        "rich>=13",
        "tensorboard>=2.18",
    ],
    extras_require={
        "wan": WAN,
        "deepspeed": DEEPSPEED,
        "providers": PROVIDERS,
        "profiling": PROFILING,
        "test": [*WAN, *DEEPSPEED, *PROFILING, *TEST],
    },
    entry_points={"console_scripts": ["vrlvr = vrlvr.cli:main"]},
)
