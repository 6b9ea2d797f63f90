"""Fixtures and settings of the whole suite: the same examples on every run, and torch keeps to one thread."""

import os

from hypothesis import settings

from tests.redis_fixtures import own_redis, redis_cluster, redis_server, session_redis_cluster, session_redis_server

__all__ = ["own_redis", "redis_cluster", "redis_server", "session_redis_cluster", "session_redis_server"]

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: tiny tensors on busy cores are 20x slower on two

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")
