"""What every test needs: one thread, for speed and for the same sums everywhere, and no network."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("vrlvr", deadline=None, derandomize=True)
settings.load_profile("vrlvr")
