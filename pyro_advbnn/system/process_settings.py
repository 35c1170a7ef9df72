"""What commands set for their process while they work, and leave as it was for whoever calls them from Python."""
from contextlib import contextmanager

import pyro
import torch

from pyro_advbnn.system.devices import keep_freed_memory


@contextmanager
def process_settings(num_threads=None):
    """No checks of distributions by Pyro and torch, which cost time in every step; torch on num_threads threads, if given.

    The C library keeps freed memory (`devices.keep_freed_memory`) from here on for good: it knows no way back.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    if num_threads:
        torch.set_num_threads(num_threads)
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        if num_threads:
            torch.set_num_threads(before)
