"""Locust scenarios: one file each, on clients, shapes and a summary that they share; `run` starts all they need."""
