"""The KV states of one model: tiers, pages, fetch or recompute."""
