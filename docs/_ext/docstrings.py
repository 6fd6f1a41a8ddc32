"""Gives Sphinx the docstrings as `markdown_docstrings` converts them, and finds what they name."""

import collections
from typing import Any

from docutils import nodes
from markdown_docstrings import convert
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

#: Last part of a documented name -> names.
_ENTRIES: dict[str, list[str]] = collections.defaultdict(list)


def _index(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """By their last part, since Sphinx would look through all names for each reference."""
    del app
    _ENTRIES.clear()
    for name in env.domains.python_domain.objects:
        _ENTRIES[name.rpartition(".")[2]].append(name)
    return []


def _find(app: Sphinx, env: BuildEnvironment, node: Any, text: nodes.Element) -> Any:
    """Docstrings name classes without their module: `Batch`."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    target = node["reftarget"]
    found = [name for name in _ENTRIES[target.rpartition(".")[2]] if name.endswith(f".{target}")]
    if len(found) != 1:
        return None
    entry = env.domains.python_domain.objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, found[0])


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    del app, what, name, obj, options
    lines[:] = convert("\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Comes before napoleon, whose priority is the default, 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("env-updated", _index)
    app.connect("missing-reference", _find)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
