"""Settings of the whole suite: hypothesis draws the same examples on every run, and time is nobody's oracle."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")
