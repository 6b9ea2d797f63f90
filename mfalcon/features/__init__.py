"""Numbers of (user, candidate, time) that meet a candidate behind the layers. No torch."""
