"""Judging a video costs what its arithmetic costs: no numerical library may wake its other threads for it.

They wait for work by spinning: one product a frame that is large enough to be shared made 40 ms of processor time 600.
"""

import os
import subprocess
import sys

SCRIPT = """
import time

from vrlvr import puzzles
from vrlvr.puzzles.second import second_verify

# FlowFree has the most tones, so the largest products.
puzzle = puzzles.generate("flowfree", puzzles.flow_free.Difficulty(), 0, "test", 0)
video = puzzles.render(puzzle, 480, 832, 81, 4)
others = 0.0
for judge in (puzzles.verify, second_verify):
    judge(puzzle, video[:1])  # what is computed once
    begin = time.process_time() - time.thread_time()
    assert judge(puzzle, video).solved
    others += time.process_time() - time.thread_time() - begin
print(others)
"""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def test_no_other_thread_works() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.01  # seconds
