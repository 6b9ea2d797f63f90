"""A graph of items: what it is built of, and the vectors that a server reads of it. No torch."""
