"""Item rows that change while a model serves: deltas, and the versions of a table that they make."""
