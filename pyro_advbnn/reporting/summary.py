"""One table of a report, and the sentences that its notes share."""
import textwrap
from dataclasses import dataclass

from pyro_advbnn.cli import text_tables
from pyro_advbnn.reporting import paper
from pyro_advbnn.reporting.curves import common, settings

INTERVALS = "Accuracy in % with its 95 % Wilson interval"


@dataclass(frozen=True)
class Summary:
    """A table of texts. note: the settings, the source of the published numbers, and how agreement is computed."""

    name: str
    title: str
    columns: list
    rows: list
    note: str

    def as_text(self):
        """Aligned text."""
        table = text_tables.aligned([self.columns, *self.rows])
        return "\n".join(filter(None, (self.title, table, textwrap.fill(self.note, 120, break_on_hyphens=False)))) + "\n"

    def as_markdown(self):
        """Markdown: a heading, a table and the note."""
        lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in (self.columns, *self.rows)]
        lines.insert(1, "|" + " --- |" * len(self.columns))
        return "\n\n".join(filter(None, (f"### {_escaped(self.title)}", "\n".join(lines), _escaped(self.note)))) + "\n"


def _escaped(text):
    for sign in ("\\", "|", "*", "<", "`", "]("):      # no bracket alone: intervals have them
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")


def shared(rows, x=None):
    """The settings of all rows, and what a network is, as a sentence without its full stop."""
    networks = sorted({settings(row)["network"] for row in rows})
    return ", ".join([*common(rows, x).values(), f"network {' and '.join(networks)}"])


def claim(name):
    """What the paper says in words, as a sentence."""
    said, where = paper.CLAIMS[name]
    return f"The paper ({where}): {said}."
