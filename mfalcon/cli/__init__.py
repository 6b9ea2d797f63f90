"""The command line. This file runs before any module that imports torch, and sets what OpenMP reads once, at load."""

import os

# Threads that wait by spinning starve each other and the event loop as soon as a core is shared: 15 times slower here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
