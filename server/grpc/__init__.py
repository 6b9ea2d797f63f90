"""The gRPC transport."""

import os

# What gRPC itself writes to standard error, past our log, is what callers did wrong: a line for each malformed timeout.
# It reads this once, when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
