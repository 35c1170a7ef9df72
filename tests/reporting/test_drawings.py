"""Tests of drawings: an SVG file becomes shapes and text of the page, and nothing else of it does."""
import re
import xml.etree.ElementTree as ET

import pytest
from test_report import SVG, Page

from pyro_advbnn.reporting import drawings
from pyro_advbnn.system.errors import InputError


def draw(tmp_path, inside, start=SVG):
    """The markup of a drawing that holds `inside`, as it goes into the page."""
    path = tmp_path / "drawing.svg"
    path.write_text(start.format(inside))
    return ET.tostring(drawings.inline_svg(path, "f1", "label"), encoding="unicode", method="html")


@pytest.mark.parametrize("inside", [
    "<script>alert(1)</script>", "<style>* {display: none}</style>", "<foreignObject><p>x</p></foreignObject>",
    '<a href="http://evil"><path d="M0 0"/></a>', '<image href="http://evil/x.png"/>', '<set attributeName="x"/>',
    '<image href="data:image/svg+xml,evil"/>', '<use xlink:href="http://evil#a"/>', '<use href="other.svg#a"/>',
    '<path onload="alert(1)"/>', '<path d="M0" style="fill: url(http://evil/x)"/>', '<path style="fill: URL( \'//evil\' )"/>',
    r'<path style="fill: u\72l(http://evil)"/>', r'<path style="fill: \url(http://evil)"/>',
    '<path fill="url(evil)"/>', '<path class="missing"/>',
    '<x:script xmlns:x="http://www.w3.org/1999/xhtml">alert(1)</x:script>', "<metadata>evil</metadata>",
    '<path style="fill: url(#c), url(http://evil)"/>', '<path style="fill: image-set(\'http://evil\' 1x)"/>',
])
def test_a_drawing_keeps_shapes_alone_no_script_style_sheet_handler_or_reference_to_elsewhere(tmp_path, inside):
    markup = draw(tmp_path, inside)
    assert not re.search(r"evil|alert|script|foreign|style>|class=|other\.svg|<set|<p>|72l", markup)
    assert "accuracy (%)" in markup and Page(markup).balanced


@pytest.mark.parametrize("text", ["no drawing", "<html/>", '<!DOCTYPE svg [<!ENTITY a "b">]><svg>&a;</svg>', "<svg>", "\xff"])
def test_a_file_that_is_no_drawing_or_holds_entities_is_refused_by_name(tmp_path, text):
    path = tmp_path / "drawing.svg"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="drawing.svg"):
        drawings.inline_svg(path, "f1", "label")


def test_a_drawing_takes_the_pages_ink_and_paper_scales_and_keeps_its_words(tmp_path):
    markup = draw(tmp_path, '<path id="z" fill="#FFFFFF" stroke="#1B1B1B"/><text>#1b1b1b on #ffffff</text>')
    root = Page(markup).all("svg")[0]
    assert root == {"viewbox": "0 0 90 60", "role": "img", "aria-label": "label"}
    assert markup.count("currentColor") == markup.count("none") == 2 and "#1b1b1b on #ffffff" in markup
