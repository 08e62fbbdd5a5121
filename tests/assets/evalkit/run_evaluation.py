"""A stand-in for VBVR-EvalKit's run_evaluation.py, written for the tests: the same options, files and fields of its results.

A video's score is 1 where its last frame is the ground truth's final one, .4 where it is the first one, else 0. A file
`behaviour` beside this one makes it misbehave.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from vbvr_bench.evaluators import TASK_CATEGORY_MAP

SPLITS = {"In-Domain_50": "In_Domain", "Out-of-Domain_50": "Out_of_Domain"}
MODE = {"no_ssim_fallback": True}


def score(video: Path, truth: Path) -> dict:
    try:
        with av.open(str(video)) as container:
            last = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][-1].astype(float)
    except (av.error.FFmpegError, IndexError) as error:
        return {"score": 0.0, "dimensions": {}, "error": str(error)}
    near = {}
    for name in ("first_frame", "final_frame"):
        wanted = Image.open(truth / f"{name}.png").convert("RGB").resize(last.shape[1::-1])
        near[name] = np.abs(np.asarray(wanted, float) - last).mean() < 8
    value = 1.0 if near["final_frame"] else 0.4 if near["first_frame"] else 0.0
    return {"score": value, "dimensions": {"task_specific": value}, "error": None}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model_path", "--gt_base", "--output_dir"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    behaviour = Path(__file__).with_name("behaviour")
    behaves = behaviour.read_text().strip() if behaviour.exists() else ""
    if behaves == "crash":
        print("Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named 'cv2'", file=sys.stderr)
        sys.exit(1)
    if behaves == "hang":
        print("going to sleep", flush=True)
        time.sleep(60)
    if behaves == "silent":
        return
    samples = []
    for folder, split in SPLITS.items():
        root = args.model_path / folder
        if not root.exists():
            print(f"Warning: {root} does not exist")
            continue
        for task in sorted(path.name for path in root.iterdir()):
            if task not in TASK_CATEGORY_MAP:
                print(f"Warning: No evaluator for task {task}")
                continue
            for video in sorted(root.joinpath(task).iterdir()):
                if re.fullmatch(r"\d{5}\.mp4", video.name):
                    found = score(video, args.gt_base / folder / task / video.stem)
                    place = {"video_path": str(video), "video_file": video.name, "task_name": task, "split": split}
                    samples.append(place | {"category": TASK_CATEGORY_MAP[task], "folder": folder} | found)
    if behaves == "strange":
        samples = [{"score": 2.0}]
    name = args.model_path.name
    results = {"model_name": name, "model_path": str(args.model_path), "samples": samples, "summary": {}}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / f"{name}_vbvr_results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
