"""The process of a job: `python -m service.job_process MEMORY COMMANDS PARENT`, in the job's folder.

COMMANDS are words of `surematch`, as JSON; only the last one's standard output is the result. It may take MEMORY bytes,
runs at low priority, and ends when the service PARENT does: what it had done is continued at the service's next start.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
from contextlib import redirect_stdout

from service.cli import main

_PR_SET_PDEATHSIG = 1


def run(memory: int, commands: list[list[str]], parent: int) -> int:
    """The exit code of the first command that fails, or 0."""
    # not SIGTERM: what is under way may take minutes to notice it, and the job that continues this one waits so long
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be told
        return 130
    alone = os.open(".running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(alone, fcntl.LOCK_EX)  # of a service that was killed, the job's process may take a moment to end
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    os.nice(10)
    for words in commands[:-1]:
        with redirect_stdout(sys.stderr):
            code = main(words)
        if code:
            return code
    return main(commands[-1])


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])))
