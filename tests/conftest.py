"""Fixtures and settings of the whole suite: the same examples on every run, torch keeps to one thread, and Triton's
kernels run in its interpreter where there is no CUDA device.
"""

import os
from importlib.util import find_spec

from hypothesis import settings

from tests.redis_fixtures import own_redis, redis_cluster, redis_server, session_redis_cluster, session_redis_server

__all__ = ["own_redis", "redis_cluster", "redis_server", "session_redis_cluster", "session_redis_server"]

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: tiny tensors on busy cores are 20x slower on two

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
collect_ignore_glob = [] if find_spec("triton") else ["kernels/test_gpu_*.py"]  # there is none but on Linux

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")
