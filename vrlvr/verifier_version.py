"""Which verifier judged: its rules decide what a success rate means."""

import hashlib
from pathlib import Path

from vrlvr import __version__

_RULES = Path(__file__).parent / "puzzles"


def verifier_version(rules: Path = _RULES) -> str:
    """Version of the package and a SHA-256 over the verifier's sources: equal only where videos are judged alike."""
    total = hashlib.sha256()
    for path in sorted(rules.rglob("*.py")):
        total.update(f"{path.relative_to(rules).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"vrlvr {__version__}, rules {total.hexdigest()[:12]}"
