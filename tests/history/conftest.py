"""Fixtures of the tests of histories."""

from tests.history.replicas import replica

__all__ = ["replica"]
