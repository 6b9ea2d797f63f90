"""The truth: every user's events in order. No torch."""
