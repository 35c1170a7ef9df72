"""One thread for all tests; and counts for README's reliability table, of what was survived or tried, printed at the end."""
import os
from collections import Counter

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")            # before torch is imported: two threads of networks this small wait for
_COUNTS = Counter()                                      # each other, most of all where another program has one of the cores


@pytest.fixture
def tally():
    """A function that adds to a count of the session: tally("kills survived"), tally("malformed inputs refused", 20)."""
    def add(name, number=1):
        _COUNTS[name] += number
    return add


def pytest_terminal_summary(terminalreporter):
    if _COUNTS:
        terminalreporter.section("reliability")
        for name, number in sorted(_COUNTS.items()):
            terminalreporter.write_line(f"{number:6,}  {name}")
