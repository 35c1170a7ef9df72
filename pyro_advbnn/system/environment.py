"""The environment that results came from."""
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def environment():
    """Versions, the git commit of the package and the hardware, for config.json."""
    names = ("pyro-advbnn", "torch", "torchvision", "pyro-ppl", "numpy", "fire")
    return {"python": platform.python_version(), "versions": {name: _version(name) for name in names},
            "git_commit": _git_commit(), "hardware": {"machine": platform.machine(), "system": platform.system(),
                                                     "cpu": _cpu_name(), "cpu_cores": os.cpu_count()}}


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_commit():
    """That of the clone in which this file lies; None for an installed package, around which may lie another's repository."""
    clone = Path(__file__).parents[2]
    if not (clone / ".git").exists():
        return None
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or None
