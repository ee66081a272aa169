"""How Sphinx builds the site: `sphinx-build -W docs build/site`.

Sphinx, with MyST for Markdown, rather than MkDocs: links, anchors and references between pages and
docstrings are checked, and a broken one fails the build.
"""

import pathlib
import pkgutil
import re

from sphinx.util import logging

import dinov3_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
log = logging.getLogger(__name__)

project, author, release = "dinov3_jax", "the authors of dinov3_jax", dinov3_jax.__version__
copyright = author
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode",
              "sphinx_copybutton", "myst_parser"]
myst_heading_anchors = 4  # "page.md#a-heading" is checked
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dinov3_jax"
html_static_path = ["_static"]
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype, napoleon_use_ivar = False, True
# `name` in a docstring is code, and a link where it names something that the site describes.
default_role = "py:obj"
smartquotes = False  # quotes are code's, mostly


def as_rst(app, what, name, obj, options, lines):
  """Docstrings are plain text with `code`: what reStructuredText would read into them is escaped,
  and what is indented stays as it is."""
  text = "\n".join(_as_one_paragraph(lines))
  pieces = re.split(r"(`[^`]*`)", text)
  pieces[::2] = [re.sub(r"[*|\\]|(?<=\w)_(?=\W|$)", r"\\\g<0>", piece) for piece in pieces[::2]]
  pieces[1::2] = [piece if re.fullmatch(r"`[\w.]+`", piece) else f"`{piece}`"
                  for piece in pieces[1::2]]  # only names can be links
  # "`Name`s" is one word.
  pieces[2::2] = [re.sub(r"^(?=\w)", r"\\ ", piece) for piece in pieces[2::2]]
  text = "".join(pieces)
  if what == "module":
    text = re.sub(r"(?m)^(?=\S)(.*)\n(?:\n?)((?:  +\S.*\n?|\n(?=  ))+)", _literal, text)
  lines[:] = text.split("\n")


def _as_one_paragraph(lines):
  """The lines of a docstring, with each entry of its sections at one indentation: what is below an
  entry that ends in a colon is a list."""
  inside, listing = 0, False
  for line in lines:
    indent = len(line) - len(line.lstrip())
    if re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises):", line):
      inside = 2
    elif line and not indent:
      inside = 0
    if inside and line and indent <= inside:
      listing = line.endswith(":") and indent == inside
    elif inside and line and indent >= inside + 2:
      if listing and indent == inside + 2:
        yield ""
      line = " " * (inside + 2) + line.lstrip()
    yield line


def _literal(found) -> str:
  body = re.sub(r"\\([*|_\\])", r"\1", found[2]).rstrip("\n")
  return f"{found[1]}\n\n::\n\n{body}\n\n"


def pages_for_files(app, document, source):
  """The page with what was measured has all of it, and links to Markdown that is no page of its own
  lead to the page that has it."""
  text = source[0]
  if document == "measured":
    for path in sorted(ROOT.glob("benchmarks/*.md")):
      # As seen from docs/: its neighbours are in another folder, and its title is a part's.
      part = re.sub(r"\]\((?!\.\./|[a-z]+:|#)", "](../benchmarks/", path.read_text())
      text += "\n" + re.sub(r"(?m)^(?=#+ )", "#", part)
  text = re.sub(r"\]\(\.\./benchmarks/(\w+)\.md(#[^)]*)?\)", _measured, text)
  source[0] = text.replace("](../README.md)", "](start.md)").replace("](../docs/", "](")


def _measured(found) -> str:
  if not (ROOT / "benchmarks" / f"{found[1]}.md").exists():
    return found[0]  # which is then told as broken
  return f"](measured.md{found[2] or '#' + _anchor(found[1])})"


def _anchor(benchmark: str) -> str:
  title = (ROOT / "benchmarks" / f"{benchmark}.md").read_text().splitlines()[0].lstrip("# ")
  return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def names_exist(app, environment, node, content):
  """A name of this package that the site does not describe must at least be there."""
  name = node.get("reftarget", "")
  if node.get("refdomain") == "py" and re.fullmatch(r"dinov3_jax(\.\w+)+", name):
    try:
      pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
      log.warning("there is no %s", name, location=node)


def setup(app):
  app.connect("missing-reference", names_exist)
  app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
  app.connect("source-read", pages_for_files)
