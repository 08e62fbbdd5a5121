"""FLOPs of a forward of Wan2.2-TI2V-5B, by part, as `vrlvr.models.flops` counts them.

python profiling/flops.py [--height 480] [--width 832] [--num_frames 81]
"""

import argparse
import sys

from vrlvr.models.dit import WanConfig
from vrlvr.models.flops import forward_flops, tokens_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--num_frames", type=int, default=81)
    arguments = parser.parse_args()
    config = WanConfig()
    tokens = tokens_of(config, arguments.num_frames, arguments.height, arguments.width)
    parts = forward_flops(config, tokens)
    total = sum(parts.values())
    print(f"{tokens} tokens, {total / 1e12:.1f} TFLOP a forward")
    for name, flops in parts.items():
        print(f"{name:>24} {flops / 1e12:>8.2f} TFLOP {flops / total:>6.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
