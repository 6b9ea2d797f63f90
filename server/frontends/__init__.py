"""Processes that terminate gRPC and HTTP in front of the one that computes (`--frontends`)."""
