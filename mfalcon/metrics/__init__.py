"""Everything that /metrics shows: one object per server, on a registry of its own, and no global counters."""
