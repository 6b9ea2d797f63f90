"""Settings of the server that belong together, each part in a file of its own."""
