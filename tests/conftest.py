"""What tests share: one thread, one small finished run, the digits read once."""
import copy
import functools
import gc
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIZES = [(8, 8), (9, 7), (30, 11), (8, 60)]
MODES = ["RGB", "L", "P", "RGBA", "1"]
# Before torch is imported: two threads of networks this small wait for each other, most of all where others use a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
LONGEST = ["test_gpu", "test_zoo", "test_ci_gpu", "test_reproduce", "test_train", "test_checks", "test_evaluate",
           "test_foreign_tools", "test_torchrun", "test_cuda_graphs", "test_determinism",
           "test_carlini_wagner", "test_uncertainty_verb", "test_cifar10", "test_packaging", "test_distributed", "test_figures",
           "test_signals", "test_kills", "test_micro_batches"]


@pytest.fixture(autouse=True)
def validation_as_before():
    """Pyro checks its arguments in every test, though some turn that off, as commands do while they work."""
    yield
    if "pyro" in sys.modules:
        sys.modules["pyro"].enable_validation(True)


@pytest.fixture(autouse=True)
def no_lost_gpu(request):
    """A CUDA error that stays ends its process of several, which are begun anew, so that it fails no other test."""
    yield
    if request.node.get_closest_marker("gpu") and "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        try:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


@pytest.fixture(scope="module")
def one_thread():
    """What is trained comes out alike, whatever the machine's number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def operations():
    """A context whose `count` tells how often each operation on tensors, by name, was called inside."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        count = Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count[function.overloadpacket.__name__] += 1
            return function(*args, **kwargs or {})

    return Counting()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The smallest finished run; a test that changes something of it takes a copy (`hostile.copied`)."""
    from hostile import digests, make_run

    folder = make_run(tmp_path_factory.mktemp("finished") / "run")
    before = digests(folder)
    yield folder
    assert digests(folder) == before, "a test has changed the run that all share"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that knows digits, for tests of evaluation."""
    from tiny_runs import EVALUATED

    from pyro_advbnn.train import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train(**EVALUATED, out=folder)
    return folder


@pytest.fixture
def run(trained):
    """The trained run, without an evaluation."""
    for name in ("evaluation", "figures"):
        shutil.rmtree(trained / name, ignore_errors=True)
    return trained


@pytest.fixture
def undrawn(monkeypatch):
    """Commands draw no figures, in tests of rows alone."""
    monkeypatch.setattr("pyro_advbnn.reporting.figures.draw", lambda *_: [])


@pytest.fixture(scope="session", autouse=True)
def digits_once():
    """scikit-learn parses its digits anew at each call; tests, which load them hundreds of times, need not."""
    from pyro_advbnn.datasets import loading

    read = functools.cache(loading.read_digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "read_digits", lambda: copy.deepcopy(read()))
        yield


@pytest.fixture
def without_matplotlib(tmp_path_factory):
    """PYTHONPATH for processes that draw no figures, where no test looks at these."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.fixture
def folder(tmp_path):
    """A data set of images in files: three classes of 17 training and 5 test images, of many sizes and modes."""
    import numpy as np
    from PIL import Image

    for split, num in (("train", 17), ("val", 5)):
        for label, name in enumerate("abc"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(num):
                width, height = SIZES[i % len(SIZES)]
                array = np.random.default_rng((label, i, num)).integers(0, 256, (height, width, 3), dtype=np.uint8)
                image = Image.fromarray(array).convert(MODES[i % len(MODES)])
                image.save(tmp_path / "data" / split / name / f"{i:02d}.png")
    return tmp_path / "data"


def pytest_collection_modifyitems(items):
    """The longest files come first: at the end all cores shall have something to do."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """What is imported by now is not looked through whenever a test collects garbage."""
    gc.freeze()
