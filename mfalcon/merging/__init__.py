"""Several rankers as one: their task outputs merged before the blend. numpy only, for evaluation and serving alike."""
