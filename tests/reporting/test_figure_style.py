"""Tests of how figures look: runs are told apart without colour, and a defence has one colour in all figures."""
import pytest
from result_tables import ADV, ADVBNN, row, run_fields

from pyro_advbnn.reporting import curves, figure_style

pytest.importorskip("matplotlib")


def test_many_runs_differ_in_marker_and_line_and_defences_keep_their_colour():
    runs = [run_fields(f"run-{i}", "advbnn") for i in range(11)]
    found = curves.curves([row(run, 500) for run in (*runs, ADV)], "epsilon")
    look = figure_style.Look(found)
    styles = [look.of(curve) for curve in found]
    assert len({style["marker"] for style in styles}) == 12
    assert figure_style.Look(curves.curves([row(ADV, 5), row(ADVBNN, 5)], "epsilon")).of(found[-1])["color"] == "#0072b2"
