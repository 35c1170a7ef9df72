"""The tables of a report, from the csv files of a result folder: our numbers, and beside them what was published. No torch."""
from functools import partial
from pathlib import Path

from pyro_advbnn.reporting import csv_tables
from pyro_advbnn.reporting.accuracy_summaries import accuracy, runs, table1
from pyro_advbnn.reporting.claim_summaries import gradients, layers, sweep, transfer
from pyro_advbnn.reporting.robustness_summaries import checks, gains, robust
from pyro_advbnn.reporting.uncertainty_summaries import detection, uncertainty
from pyro_advbnn.system import files

_MAKERS = {                                              # functions of (rows, folder) that return a list of summaries
    "accuracy": (table1, accuracy),
    "runs": (runs,),
    "transfer": (transfer,),
    "ensemble": (partial(sweep, "ensemble"),),
    "steps": (partial(sweep, "steps"),),
    "layers": (layers,),
    "pruning": (partial(sweep, "pruning"),),
    "alpha": (partial(sweep, "alpha"),),
    "prior_std": (partial(sweep, "prior_std"),),
    "gradients": (gradients,),
    "uncertainty": (uncertainty,),
    "detection": (detection,),
    "robust": (robust,),
    "gains": (gains,),
    "checks": (checks,),
}


def summaries(folder):
    """The summaries of all csv files in folder/evaluation that have rows, a list.   Raises InputError for other columns."""
    return [summary for name in _MAKERS for summary in of(name, csv_tables.read(folder, name), folder)]


def of(name, rows, folder):
    """The summaries of some rows of the csv file `name`, a list."""
    return [summary for make in _MAKERS[name] for summary in make(rows, Path(folder))] if rows else []


def write(folder):
    """Write folder/tables/<name>.md for each summary; the paths written, a list."""
    paths = []
    for summary in summaries(folder):
        path = Path(folder) / "tables" / f"{summary.name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(summary.as_markdown().encode())
        paths.append(path)
    return paths
