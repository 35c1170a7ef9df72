"""How much memory there is, and whether an error says that there was none."""
import os
from pathlib import Path

_TOLD = ("can't allocate memory", "could not create a", "bad_alloc", "bad allocation")


def available_memory():
    """Bytes that can be used without swapping (Linux); elsewhere the whole memory of the machine."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error):
    """Whether Python, torch, or oneDNN beneath it, found no memory; on the CPU only the message tells."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"     # torch's, without importing it
    return named or any(text in str(error) for text in _TOLD)
