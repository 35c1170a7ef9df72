"""Figures of doubt: the reliability diagram, and how well doubt detects attacked and foreign images."""
from pyro_advbnn.reporting.curves import Curve, common, curves, labels, named, place, settings
from pyro_advbnn.reporting.figure_style import GREY, Look, error_bars, finish_figure, start_figure


def calibration(rows):
    """Accuracy in each bin of confidence, with 95 % intervals, a panel for each run; the diagonal is perfect calibration."""
    names = labels(rows)
    panels = {run: curves([row for row in rows if row["run"] == run], "confidence", names={run: ""}) for run in names}
    figure, axes = start_figure(len(panels), height=3.2)
    look = Look([curve for panel in panels.values() for curve in panel])
    for ax, (run, panel) in zip(axes, panels.items(), strict=True):
        ax.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=(0, (2, 1.5)))
        look.lines(ax, panel, "confidence", lambda share: 100 * share)
        ax.set_title(names[run], loc="left")
        ax.set_xlim(-2, 102)
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel("confidence in the bin (%)")
    return finish_figure(figure, "Calibration of averaged predictions; diagonal: confidence equals accuracy",
                         common(rows, "confidence"), look.handles())


def detection(rows):
    """AUROC of doubt against clean images with its 95 % interval, a line for each kind of images, a panel for each score."""
    rows = [row for row in rows if row["auroc"] is not None]
    if not rows:
        return None
    kinds = list(dict.fromkeys(map(detected, rows)))
    by_score = {score: {} for score in sorted({row["score"] for row in rows}, key=place)}
    for name, row in named(rows, "attack", "epsilon", "score"):
        by_score[row["score"]].setdefault(name, []).append(row)
    panels = [[Curve(name, {}, of_name) for name, of_name in lines.items()] for lines in by_score.values()]
    figure, axes = start_figure(len(panels), height=0.8 + 0.3 * len(kinds))
    look, shared = Look([curve for panel in panels for curve in panel]), common(rows)
    for ax, panel in zip(axes, panels, strict=True):
        for number, curve in enumerate(panel):
            offset = 0.5 * ((number + 0.5) / len(panel) - 0.5)
            ax.errorbar([row["auroc"] for row in curve.rows], [kinds.index(detected(row)) + offset for row in curve.rows],
                        xerr=error_bars(curve.rows, "auroc"), elinewidth=0.9, capsize=2,
                        **look.of(curve) | {"linestyle": "none"})
        ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (2, 1.5)))
        ax.set(xlabel="AUROC", xlim=(-0.02, 1.02), ylim=(len(kinds) - 0.4, -0.6))
        ax.set_title(settings(panel[0].rows[0])["score"], loc="left")
        ax.set_yticks(range(len(kinds)), kinds)
    return finish_figure(figure, "Detection by doubt against clean images; 0.5: chance", shared, look.handles())


def detected(row):
    """What the positives of a row of detection.csv are, in words."""
    wrong = ", where wrong" if row["positives"] == "wrong" else ""
    return row["ood"] or f"{row['attack']}, ε = {row['epsilon']:g}{wrong}"
