"""What was freed goes back to the system, also when threads took turns with blocks that live on."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHURN = """
import threading
from pathlib import Path
from service.memory import give_back_memory

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024

assert give_back_memory()
kept = []
def churn():
    for _ in range(20):
        blocks = [bytearray(b"x") * (3 << 20) for _ in range(5)]
        kept.append(bytearray(b"y") * 4096)  # lives on between them
        del blocks
before = resident()
for _ in range(3):
    threads = [threading.Thread(target=churn) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator that is set up is glibc's")
def test_freed_blocks_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 24, "MiB held, of 120 in use at a time"
