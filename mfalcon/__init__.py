"""mfalcon: an online ranking inference server for generative rankers."""

__version__ = "0.1.0"
