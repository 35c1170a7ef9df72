import os
import time

import pytest
import torch

from pyro_advbnn.experiments.elsewhere import Elsewhere


def process_number(path):
    return lambda: path.write_text(str(os.getpid()))


def sleeper(seconds):
    return lambda: time.sleep(seconds)


def threads(path):
    return lambda: path.write_text(str(torch.get_num_threads()))


def failing(when):
    if when == "built":
        raise ValueError("cannot be built")
    return lambda: 1 / 0


def test_a_call_is_made_in_another_process_with_as_many_threads(tmp_path):
    for make, here in ((process_number, os.getpid()), (threads, torch.get_num_threads())):
        call = Elsewhere(make, tmp_path / "said")
        call.timed()
        assert (int((tmp_path / "said").read_text()) == here) == (make is threads)
        call.close()
        assert not call._process.is_alive()


def test_its_time_is_measured_there():
    call = Elsewhere(sleeper, 0.05)
    (wall, cpu), _ = call.timed(), call.close()
    assert 0.05 <= wall < 1 and cpu < 0.04


@pytest.mark.parametrize(("when", "message"), [("built", "ValueError: cannot be built"), ("called", "ZeroDivisionError")])
def test_what_fails_there_fails_here(when, message):
    with pytest.raises(RuntimeError, match=message):
        Elsewhere(failing, when).timed()


def test_a_process_that_was_killed_is_told():
    call = Elsewhere(sleeper, 0)
    call._process.kill()
    call._process.join()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        call.timed()
