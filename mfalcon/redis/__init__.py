"""One connection to Redis for a server."""
