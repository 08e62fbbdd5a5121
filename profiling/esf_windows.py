"""Seconds per GRPO update of a real run with Early-Step Focus against full-step training, from its SFT policy.

    python profiling/esf_windows.py --run_dir runs/tiny [--updates 6] [--windows 2,3,5,all] [--out FILE.json]

Every window trains the same puzzles, samples and denoising steps (no coarse tail, every sample kept, no anchor), so that the
window is the only difference. Beside the seconds stands what counting predicts, in DiT forwards a sample: one a denoising
step of the rollout and three a trained step (a forward and a backward of twice its cost), where step 0, whose noise the
group shares, costs 1/G of that.
"""

import argparse
import copy
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from vrlvr import options
from vrlvr.batches import read_split
from vrlvr.build import load_policy, open_source
from vrlvr.checkpoint import Checkpoints
from vrlvr.config import Config, check, num_sde_steps
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.grpo import train_grpo
from vrlvr.run_dir import facts
from vrlvr.run_log import RunLog, read_metrics

PHASES = ("seconds_rollout", "seconds_decode", "seconds_verify", "seconds_update")


def predicted_units(config: Config) -> float:
    """DiT forwards a sample of one update, see above."""
    step_0 = 1 / config.grpo.group_size if config.grpo.shared_noise else 1.0
    return (step_0 + config.sampler.num_steps - 1) + 3 * (step_0 + num_sde_steps(config) - 1)


def measure(config: Config, run: Path) -> dict[str, float]:
    """Mean seconds by phase over the updates after the first (which warms up)."""
    world = World()
    source = open_source(config, run, world.device)
    policy = load_policy(config, source, world.device, run, "sft-final")
    reference = copy.deepcopy(policy).requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        with RunLog(run_dir) as log:
            checkpoints = Checkpoints(run_dir, world, resume=False)
            train_grpo(config, world, log, checkpoints, policy, reference, source, read_split(run, "val"))
        rows = read_metrics(run_dir / "metrics.jsonl")[1:]
    means = {phase: float(np.mean([row[phase] for row in rows])) for phase in (*PHASES, "seconds_cpu")}
    return means | {"seconds": sum(means[phase] for phase in PHASES)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run_dir", type=Path, required=True, help="a run whose SFT is complete")
    parser.add_argument("--updates", type=int, default=6, help="updates a window; the first is not counted")
    parser.add_argument("--windows", default="2,3,5,all", help="values of grpo.sde_steps, comma separated")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    try:
        if arguments.updates < 2:
            raise UserError(f"--updates {arguments.updates} leaves nothing after the warm-up; use at least 2")
        base = options.parse(["--config", str(arguments.run_dir / "config.yaml")])
        rows = []
        for window in arguments.windows.split(","):
            grpo = replace(
                base.grpo,
                sde_steps="all" if window == "all" else int(window),
                updates=arguments.updates,
                validate_every=10**9,
                save_every=10**9,
                tail_steps=None,
                keep_fraction=1.0,
                anchor_weight=0.0,
            )
            config = replace(base, grpo=grpo)
            check(config)
            seconds = measure(config, arguments.run_dir)
            rows.append({"sde_steps": num_sde_steps(config), "units": predicted_units(config)} | seconds)
    except (UserError, ValueError) as error:
        print(f"esf_windows: {error}", file=sys.stderr)
        return 2
    full = max(rows, key=lambda row: row["sde_steps"])
    print(f"{'window':>8} {'units':>7} {'s/update':>9} {'CPU s':>7} {'saved':>7} {'predicted':>10}")
    for row in rows:
        row["saved"], row["saved_predicted"] = (1 - row[k] / full[k] for k in ("seconds", "units"))
        print(
            f"{row['sde_steps']:>5}/{base.sampler.num_steps:<2} {row['units']:>7.1f} {row['seconds']:>9.3f} "
            f"{row['seconds_cpu']:>7.2f} {row['saved']:>7.1%} {row['saved_predicted']:>10.1%}"
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"run": facts(base, ["python", "profiling/esf_windows.py", *sys.argv[1:]], 1), "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
