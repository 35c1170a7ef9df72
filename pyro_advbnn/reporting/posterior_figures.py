"""Figures of the posterior (Fig. 4): the density over all weights beside the prior's, and the range of each layer."""
from pyro_advbnn.reporting.curves import common, curves, densities
from pyro_advbnn.reporting.figure_style import GREY, Look, finish_figure, start_figure


def density(quantity, title, xlabel):
    """A drawing function: density over all weights, one curve per run, and the stds of the prior as lines (Fig. 4)."""
    def drawing(rows):
        rows = [row for row in rows if row["layer"] == "all"]
        found = curves([row for row in rows if row["quantity"] == quantity], "left")
        if not found:
            return None
        figure, axes = start_figure(1)
        look = Look(found, marked=False)
        for curve in found:
            centres = [(row["left"] + row["right"]) / 2 for row in curve.rows]
            axes[0].plot(centres, densities(curve), **look.of(curve))
        axes[0].set(xlabel=xlabel, ylabel="density", ylim=(0, None))
        priors = curves([row for row in rows if row["quantity"] == "prior_log_std"], "left") if quantity == "log_std" else []
        return finish_figure(figure, title, common(rows, "left"), look.handles() + _prior_lines(axes[0], priors))
    return drawing


def _prior_lines(axes, priors):
    """Lines at the priors' log stds, as high as the share of the weights that have them; the entry of the legend."""
    from matplotlib.lines import Line2D
    if not priors:
        return []
    top, style = axes.get_ylim()[1], {"color": GREY, "linestyle": (0, (2, 1.5)), "linewidth": 1}
    lines = sorted({(row["left"], row["share"]) for prior in priors for row in prior.rows})
    most = max(share for _, share in lines)
    axes.vlines([left for left, _ in lines], 0, [top * share / most for _, share in lines], **style)
    axes.set_ylim(0, top)
    several = any(len(prior.rows) > 1 for prior in priors)
    return [Line2D([], [], label="prior (height: share of the weights)" if several else "prior", **style)]


def log_std_by_layer(rows):
    """The log std of each parameter tensor: median and the 5 to 95 % range, a tick for the prior; panels by kind."""
    from matplotlib.lines import Line2D
    rows = [row for row in rows if row["layer"] != "all"] or rows
    found, layers = curves(rows, "layer"), list(dict.fromkeys(row["layer"] for row in rows))
    kinds = list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    kinds = kinds if len(kinds) <= 2 else [""]
    owners = list(dict.fromkeys(_owner(layer, kinds) for layer in layers))
    height = 0.5 + len(owners) * max(0.17, 0.075 * len(found))
    figure, axes = start_figure(len(kinds), columns=len(kinds), height=height, sharex=True)
    look = Look(found)
    for kind, ax in zip(kinds, axes, strict=True):
        for number, curve in enumerate(found):
            part = [row for row in curve.rows if row["layer"].endswith(kind)]
            offset = 0.8 * ((number + 0.5) / len(found) - 0.5)
            _ranges(ax, part, [owners.index(_owner(row["layer"], kinds)) + offset for row in part], look.of(curve))
        ax.set(xlabel="log std of the posterior (natural logarithm)", ylim=(len(owners) - 0.4, -0.6))
        ax.set_title(kind, loc="left")
        ax.set_yticks(range(len(owners)), owners)
    prior = [Line2D([], [], color=GREY, marker="|", linestyle="none", markersize=7, label="prior (mean of log std)")]
    known = any(row["prior_log_std"] is not None for row in rows)
    return finish_figure(figure, "Posterior by layer: median, 5 to 95 % of the weights", common(rows),
                         look.handles() + (prior if known else []))


def _owner(layer, kinds):
    """The name of the row of a parameter: its module's where the panels tell weight from bias."""
    return layer.rpartition(".")[0] if any(kinds) else layer


def _ranges(axes, rows, heights, style):
    axes.hlines(heights, [row["log_std_q05"] for row in rows], [row["log_std_q95"] for row in rows], linewidth=1,
                color=style["color"])
    axes.plot([row["log_std_median"] for row in rows], heights, **style | {"linestyle": "none", "markersize": 3})
    priors = [(row["prior_log_std"], height) for row, height in zip(rows, heights) if row["prior_log_std"] is not None]
    if priors:
        axes.plot(*zip(*priors, strict=True), color=GREY, marker="|", markersize=5, linestyle="none")
