"""Sphinx settings of the book; `python docs/book/build.py` builds it."""

from __future__ import annotations

import latex2mathml.converter
from docutils.nodes import Node, SkipNode
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project, author, copyright = "tinyft", "the founders of tinyft", ""
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # named as GitHub names them
nb_execution_mode, nb_execution_raise_on_error, nb_execution_timeout = "force", True, 1800
nb_execution_in_temp = False  # beside what an example reads
nb_merge_streams = True
html_theme, html_title = "furo", "tinyft"
html_copy_source = html_show_copyright = False
pygments_style, pygments_dark_style = "tango", "monokai"
html_math_renderer = "mathml"
suppress_warnings = ["myst.header", "misc.highlighting_failure"]  # a glossary; a terminal's text


def _inline(translator: HTML5Translator, node: Node) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext(), display="inline"))
    raise SkipNode


def _block(translator: HTML5Translator, node: Node) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers draw themselves: MathJax would come from elsewhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
