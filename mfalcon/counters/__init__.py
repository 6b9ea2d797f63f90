"""What all users did with each item, counted from their logs: of no model, on the event loop. No torch."""
