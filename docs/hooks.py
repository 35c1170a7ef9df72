"""Hook of mkdocs: what the site needs beside the pages as a code host shows them.

Files of the repository that a page links, the README among them, become files of the site. MathJax comes from the package
django-static-mathjax. A block `::: ab.NAME` of the API reference becomes that of the module where the name is defined, and in
its docstring every line that begins with an argument and a colon begins a paragraph, whose lines go on without an indent
(mkdocstrings would take them for a box).
"""
import importlib.util
import inspect
import os
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

import pyro_advbnn as ab

ROOT = Path(__file__).resolve().parents[1]
ARGUMENT = re.compile(r"\n(?=[a-z]\w*(?: \([^()]*\))?(?:, [a-z]\w*(?: \([^()]*\))?)*: )")
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files, config):
    mathjax = Path(importlib.util.find_spec("mathjax").submodule_search_locations[0])
    files.append(File.generated(config, "mathjax.js", abs_src_path=str(mathjax / "static/mathjax/es5/tex-svg.js")))
    for path in ROOT.glob("*.md"):
        files.append(File.generated(config, path.name.lower(), abs_src_path=str(path)))
    linked = {_in_site(file, link) for file in files.documentation_pages() for _, link in LINK.findall(file.content_string)}
    for name in sorted(linked):
        if not files.get_file_from_path(name) and (ROOT / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def _in_site(file, link):
    """The path in the site of what the Markdown of a page links: docs/ is its root, and the rest lies as in the repository."""
    path = Path(os.path.normpath(Path(file.abs_src_path).parent / link))
    if path.parent == ROOT and path.suffix == ".md":
        return path.name.lower()
    return str(path.relative_to(ROOT)).removeprefix("docs/") if path.is_relative_to(ROOT) else link


def on_page_markdown(markdown, page, config, files):
    folder = os.path.dirname(page.file.src_uri)
    linked = LINK.sub(lambda found: found[1] + os.path.relpath(_in_site(page.file, found[2]), folder or "."), markdown)
    return re.sub(r"^::: (ab\.\S+)", _documented, linked, flags=re.MULTILINE)


def _documented(block):
    """The block of mkdocstrings for a public name, under the heading by which one calls it."""
    room, _, name = block[1].removeprefix("ab.").rpartition(".")
    home = getattr(ab, room) if room else ab
    found = getattr(home, name)
    within = f"{home.__name__}." if room else ""
    path = found.__name__ if inspect.ismodule(found) else f"{within}{home._HOME_OF[name]}.{name}"
    return f"::: {path}\n    options:\n      heading: {block[1]}\n      toc_label: {block[1]}"


class Paragraphs(griffe.Extension):
    def on_object(self, *, obj, **others):
        if obj.docstring:
            paragraphs = ARGUMENT.sub("\n\n", obj.docstring.value)
            obj.docstring.value = re.sub(r"^[a-z].*(?:\n +\S.*)+", lambda found: re.sub(r"\n +", "\n", found[0]), paragraphs,
                                         flags=re.MULTILINE)
