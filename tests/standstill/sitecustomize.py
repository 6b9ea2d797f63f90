"""Python imports this at its start where it is on the path: the process then stands still at random, with all of its
threads, as one does whose cores others have. A test that judges by the clock fails then: `make standstill`.
"""

import ctypes
import os
import random
import threading
import time

LONGEST_S = 2.0
APART_S = 0.7
"""Between two standstills, in the mean."""


def stand_still() -> None:
    """Hold the interpreter's lock, without a core, now and then."""
    library, rng = ctypes.PyDLL(None), random.Random(os.getpid())
    while True:
        time.sleep(rng.expovariate(1 / APART_S))
        library.poll(None, 0, int(1e3 * LONGEST_S * rng.random() ** 2))  # one call: in between others would have a turn


threading.Thread(target=stand_still, name="standstill", daemon=True).start()
