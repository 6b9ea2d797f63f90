"""A server of a test or bench is ended by who started it, not by the terminal's Ctrl-C, which goes to a whole group."""

import os
import subprocess

from loadtest.faults.fleet import end, guarded


def test_ctrl_c_is_for_who_started_it_alone() -> None:
    running = guarded(["sleep", "60"], subprocess.DEVNULL)
    try:
        assert os.getpgid(running.process.pid) != os.getpgid(0)
    finally:
        end(running)
    assert running.process.returncode is not None
