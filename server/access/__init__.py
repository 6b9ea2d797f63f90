"""Who may ask: callers, their rights, and what proves who they are."""
