"""SVG files as elements of a page: shapes and text alone, in the colours of the page."""
import re
import xml.etree.ElementTree as ET

from pyro_advbnn.system import files
from pyro_advbnn.system.errors import InputError

_NAMESPACE = re.compile(r"\{[^}]*\}")
_SHAPES = {"svg", "g", "defs", "path", "use", "clipPath", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text",
           "tspan", "image", "linearGradient", "radialGradient", "stop", "marker", "pattern"}
_ATTRIBUTES = {"id", "d", "x", "y", "x1", "x2", "y1", "y2", "dx", "dy", "cx", "cy", "r", "rx", "ry", "points", "width",
               "height", "transform", "style", "fill", "fill-opacity", "fill-rule", "stroke", "stroke-width",
               "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "stroke-opacity", "opacity", "clip-path",
               "clip-rule", "clipPathUnits", "href", "viewBox", "preserveAspectRatio", "offset", "stop-color",
               "stop-opacity", "gradientUnits", "gradientTransform", "text-anchor", "dominant-baseline", "font-size",
               "font-family", "font-weight", "font-style", "markerWidth", "markerHeight", "refX", "refY", "orient",
               "patternUnits", "patternTransform"}
_FUNCTIONS = {"url", "rgb", "rgba", "matrix", "translate", "scale", "rotate", "skewx", "skewy"}
_MOST_DEPTH = 100                                        # what is deeper would end in a RecursionError
_MOST_BYTES = 2**25
_COLOURS = {r"#1b1b1b\b": "currentColor", r"#ffffff\b": "none"}


def inline_svg(path, prefix, label):
    """The drawing of an SVG file as an element for the page: shapes and text alone, no script, style sheet or link.

    Identifiers become <prefix>-1 and on, ink (#1b1b1b) the colour of the page's text, paper (#ffffff) nothing.
    Raises InputError where the file is no SVG.
    """
    root = _parse(path)
    for node in root.iter():
        node.tag = _NAMESPACE.sub("", node.tag)
        node.attrib = {_NAMESPACE.sub("", name): value for name, value in node.attrib.items()}
        for child in [child for child in node if _NAMESPACE.sub("", child.tag) not in _SHAPES]:
            node.remove(child)
    names = {node.get("id"): f"{prefix}-{number}" for number, node in enumerate(root.iter(), 1) if node.get("id")}
    for node in root.iter():
        cleaned = {name: _attribute(name, value, node.tag, names) for name, value in node.attrib.items()}
        node.attrib = {name: value for name, value in cleaned.items() if value is not None}
    root.attrib = {"viewBox": root.get("viewBox", "0 0 640 480"), "role": "img", "aria-label": label}
    root.tail = "\n"
    return root


def _parse(path):
    try:
        text = files.read_text(path, _MOST_BYTES)
        root = None if "<!ENTITY" in text else ET.fromstring(text)
    except InputError:
        raise
    except (OSError, ValueError, ET.ParseError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if root is None or _NAMESPACE.sub("", root.tag) != "svg" or _depth(root) > _MOST_DEPTH:
        raise InputError(f"{path} is no drawing that a report takes: it must be an svg without entities, "
                         f"at most {_MOST_DEPTH} elements deep")
    return root


def _depth(root):
    """How deep elements lie in elements, the root at 1."""
    depth, level = 0, [root]
    while level:
        depth, level = depth + 1, [child for node in level for child in node]
    return depth


def _attribute(name, value, tag, names):
    """The attribute's value as it goes into the page, or None where it does not."""
    if name not in _ATTRIBUTES:
        return None
    if name == "id":
        return names[value]
    if name == "href":
        embedded = tag == "image" and value.startswith("data:image/png;base64,")
        return value if embedded else _reference(value.strip(), names)
    if not set(re.findall(r"([\w-]*)\s*\(", value.lower())) <= _FUNCTIONS:
        return None
    for colour, own in _COLOURS.items():
        value = re.sub(colour, own, value, flags=re.IGNORECASE)
    parts = re.split(r"url\(\s*[\"']?(.*?)[\"']?\s*\)", value, flags=re.IGNORECASE)
    parts[1::2] = [_reference(part, names) for part in parts[1::2]]
    return None if None in parts else "".join(f"url({part})" if n % 2 else part for n, part in enumerate(parts))


def _reference(value, names):
    return f"#{names[value[1:]]}" if value.startswith("#") and value[1:] in names else None
