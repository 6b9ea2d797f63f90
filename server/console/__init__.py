"""The page for people at / of the HTTP port: its files, and what it shows of /metrics."""
