"""Whether a contender gains over its control: the paired difference of per-image correctness in the worst case."""
from pyro_advbnn.evaluation import worst_case
from pyro_advbnn.evaluation.intervals import paired_difference_interval
from pyro_advbnn.reporting.csv_tables import Table
from pyro_advbnn.system import locks


def write(folder, pairs):
    """Add a row to folder/evaluation/gains.csv for each of `pairs`, from the rows of `evaluate robust` there.

    A pair: its name, seed, the runs contender and control, and epsilon. The intervals hold for all names at once.
    """
    with locks.locked(folder / "evaluation"):
        robust, examples = Table(folder, "robust"), Table(folder, "robust_examples")
        comparisons = len({pair["pair"] for pair in pairs})
        Table(folder, "gains").add([pair | _gain(*(
            _correct(robust, examples, pair[role], pair["epsilon"]) for role in ("contender", "control")), comparisons)
            for pair in pairs])


def _correct(robust, examples, run, epsilon):
    """{image: whether it stands} of a run, as its last result of that radius has it."""
    result = robust.select(run=run, epsilon=epsilon)[-1]
    rows = examples.select(**{name: result[name] for name in examples.columns if name in result})
    return {index: not row["broken"] for index, row in worst_case.worst_rows(rows).items()}


def _gain(contender, control, comparisons):
    total = len(contender)
    alone = [sum(ours[index] > theirs[index] for index in ours) for ours, theirs in
             ((contender, control), (control, contender))]
    low, high = paired_difference_interval(*alone, total, comparisons)
    return {"comparisons": comparisons, "num_examples": total, "accuracy": sum(contender.values()) / total,
            "control_accuracy": sum(control.values()) / total, "gain": (alone[0] - alone[1]) / total, "gain_low": low,
            "gain_high": high}
