"""Which ranker for a data set and a latency budget: short runs, the law fitted to them, and what serving costs."""
