"""Captured requests, played again through a checkpoint in this process, and what moved. docs/capture.md."""
