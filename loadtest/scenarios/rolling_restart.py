"""Rolling restart: the mix of a day, while one replica after the other is drained and started anew (by `run`)."""

from loadtest.scenarios.mixed import MixedTasks
from loadtest.scenarios.shape import Constant


class RollingRestart(Constant):
    """The same clients all the time."""


class RestartedClient(MixedTasks):
    """Everything, twice a second."""
