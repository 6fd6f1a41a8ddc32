"""Sphinx configuration of the documentation site; `make docs` builds it.

Pages are Markdown (MyST). API pages are made from the docstrings, which are Markdown inside Google
sections: `_ext/docstrings.py` turns them into what Sphinx reads.
"""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "refseg_jax"
author = "The refseg_jax authors"
project_copyright = "The refseg_jax authors, Apache-2.0"
version = release = version_of("refseg_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    # Before napoleon reads a docstring.
    "docstrings",
    "public_names",
    "mathml",
]
exclude_patterns = ["_build", "_ext"]

# Markdown, and the notebook, which has no outputs: a test runs it, the build does not.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
# IPython's lexer does not know `!command \` that goes on in the next line.
suppress_warnings = ["misc.highlighting_failure"]

# API pages: `automodule` takes everything public, in the order of the source.
autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,
    "show-inheritance": True,
    "member-order": "bysource",
}
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# Made where they are not installed; only their users import them.
autodoc_mock_imports = [
    *("apache_beam", "jax2onnx", "onnx", "onnxruntime"),
    *("fastapi", "gradio", "starlette", "uvicorn"),
]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
maximum_signature_line_length = 130
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# References are checked (`-n`) within the project; other projects' inventories need the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!(refseg_jax|input_pipeline)\.).*|.*\.[A-Z]"),
]

html_theme = "sphinx_book_theme"
html_title = "refseg_jax"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    # Deeper entries would be copied into the sidebar of every page: most of the time of a build.
    "navigation_depth": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "footer_content_items": ["copyright"],
}
html_show_sourcelink = False
html_copy_source = False
