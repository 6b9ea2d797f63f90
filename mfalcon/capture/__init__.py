"""Captured requests: a sample of real ranks in files, with all that is needed to play them again. docs/capture.md."""
