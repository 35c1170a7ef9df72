"""How much memory there is, and whether an error says that there was none."""
import os
from pathlib import Path

_TOLD = ("can't allocate memory", "could not create a", "bad_alloc", "bad allocation", "CUDA error: out of memory",
         "ALLOC_FAILED", "ALLOCATION_FAILED")


def available_memory():
    """Bytes that can be used without swapping, within the limits of a container (Linux); elsewhere the machine's memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *_left_by_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _left_by_control_groups(own, root):
    """What the control groups (version 2) that this process is in may still take, of those that have a limit, in bytes.

    own: the file that names the innermost one, below root. Their cache of files counts as free.
    """
    try:
        inside = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = root / inside.strip("/")
    for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
        try:
            limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if limit != "max":
                yield int(limit) - int(used) + int(stat["inactive_file"])
        except (OSError, KeyError, ValueError):          # the root has none of these
            continue


def is_out_of_memory(error):
    """Whether Python, torch, or oneDNN beneath it, found no memory; mostly the message alone tells."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"     # torch's, without importing it
    return named or any(text in str(error) for text in _TOLD)
