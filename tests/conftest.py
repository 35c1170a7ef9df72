"""Counts for README's reliability table: what a test survived, injected or tried, printed when the session ends."""
from collections import Counter

import pytest

_COUNTS = Counter()


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
