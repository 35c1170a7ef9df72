"""The elements of a page, in which text is escaped wherever it comes to stand."""
import re
import xml.etree.ElementTree as ET

from pyro_advbnn.reporting import texts

_BLOCKS = {"head", "body", "meta", "link", "style", "title", "header", "nav", "main", "footer", "section", "article", "div",
           "p", "h1", "h2", "h3", "ol", "ul", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "figure",
           "figcaption", "details", "summary", "pre"}


def element(tag, *content, **attributes):
    """An HTML element of texts and elements; attributes as class_="x", aria_label="y", and those that are None left out."""
    named = {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items() if value is not None}
    node = ET.Element(tag, named)
    node.tail = "\n" if tag in _BLOCKS else None
    for child in content:
        if not isinstance(child, str):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + child
        else:
            node.text = (node.text or "") + child
    return node


def table(caption, columns, rows):
    """A table of texts in a box of its own that scrolls; the first cell of each row is its heading."""
    rows = [list(row) for row in rows]
    kinds = [_column_kind([row[n] for row in rows]) for n in range(len(columns))]
    head = element("tr", *(element("th", column, scope="col", class_=kind) for column, kind in zip(columns, kinds)))
    lines = [element("tr", element("th", row[0], scope="row", class_=kinds[0]),
                     *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:]))) for row in rows]
    grid = element("table", element("caption", element("span", caption)), element("thead", head), element("tbody", *lines))
    return element("div", grid, class_="scroll", tabindex="0", role="region", aria_label=caption)


_NUMBER = re.compile(r"[-−]?\d[\d\s.,%\[\]()±e+−-]*|\d+ h \d+ min|\d+ min \d+ s|[\d.]+ s")      # also intervals and times


def _column_kind(cells):
    """The class of a column: numbers stand to the right, long texts need room."""
    told = [cell for cell in cells if cell != texts.NOTHING]
    if told and all(_NUMBER.fullmatch(cell) for cell in told):
        return "number"
    longest = max(map(len, told), default=0)
    return "long" if longest > 32 else "text" if longest > 12 else None


def definitions(pairs, kind):
    """A list of names and their texts, of the given class."""
    return element("dl", *(element("div", element("dt", name), element("dd", text)) for name, text in pairs.items()),
                   class_=kind)


def missing(text):
    """The contents of a section that has none: a sentence that says why."""
    return [element("p", text, class_="missing")]
