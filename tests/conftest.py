"""Settings for all tests: small, offline and the same everywhere."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)  # tensors here are tiny: more threads wait longer than they compute, and sum in another order
settings.register_profile("racm3", deadline=None, print_blob=True)  # no deadline: a busy machine is not a defect
settings.load_profile("racm3")
