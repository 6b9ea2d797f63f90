"""Streams of events into a running server: each event once, whatever is killed in between."""
