"""API pages hold every public name, once: what a module of the project defines without an underscore.

A name without an entry is a warning, and so an error of `make docs`.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import mock
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

PACKAGES = ("refseg_jax", "input_pipeline")
#: A longer value of a constant is not printed; nor is one with an address.
LONGEST_VALUE = 120

_LOGGER = logging.getLogger(__name__)


def modules() -> Iterator[str]:
    """Every module of the project's packages."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, package
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__")


def defined(module: str) -> dict[str, bool]:
    """The public names that a module itself defines; true for constants."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    names = {}
    for node in ast.parse(Path(spec.origin).read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names[name] = False
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = True
            case ast.Assign(targets=targets) if not _makes_type_variable(node.value):
                found = itertools.chain.from_iterable(map(ast.walk, targets))
                names |= {name.id: True for name in found if isinstance(name, ast.Name)}
    return {name: constant for name, constant in names.items() if not name.startswith("_")}


def _makes_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func).endswith(
        ("TypeVar", "ParamSpec")
    )


def _take_constants(app: Sphinx) -> None:
    """Sphinx leaves out constants without a `#:` comment, whatever its options say."""
    with mock(app.config.autodoc_mock_imports):
        for module in modules():
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            for name, constant in defined(module).items():
                if constant:
                    analyzer.attr_docs.setdefault(("", name), [""])


def _skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool:
    """Fields of a `NamedTuple` have docstrings that say nothing."""
    del app, what, name, options
    return skip or type(obj).__name__ == "_tuplegetter"


def _hide_arguments(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, result: str
) -> tuple[str, None] | None:
    """A protocol is not called: its `(*args, **kwargs)` says nothing."""
    del app, what, name, options, signature, result
    return ("", None) if getattr(obj, "_is_protocol", False) else None


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    found = env.domains.python_domain.objects
    for module in modules():
        if module not in env.domains.python_domain.modules:
            _LOGGER.warning("no page of docs/api has the module %s", module, type="public")
            continue
        for name in sorted(defined(module)):
            if f"{module}.{name}" not in found:
                _LOGGER.warning("no page of docs/api has %s.%s", module, name, type="public")


def _shorten(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """Takes long values out of the signatures of constants, and `Bases: object` out of classes."""
    del app
    if domain != "py" or content.parent is None:
        return
    if kind == "class" and content.children and content.children[0].astext() == "Bases: object":
        content.pop(0)
    for note in list(content.parent.findall(addnodes.desc_annotation)) if kind == "data" else ():
        text = note.astext().strip()
        if text.startswith("=") and (
            len(text) > LONGEST_VALUE or re.search(r" at 0x[0-9a-f]", text)
        ):
            note.parent.remove(note)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to Sphinx."""
    app.connect("builder-inited", _take_constants)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-signature", _hide_arguments)
    app.connect("env-check-consistency", _check)
    app.connect("object-description-transform", _shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
