"""Every module of the library and of the input pipeline is on an API page.

`automodule` takes all that is public in a module; that nothing is missing there, `make docs` checks
(docs/_ext/public_names.py).
"""

import collections
import re

from tests.docs.pages import PAGES, ROOT

PACKAGES = ("refseg_jax", "input_pipeline")


def listed() -> collections.Counter[str]:
    pages = [page for page in PAGES if page.startswith("docs/api/")]
    texts = [(ROOT / page).read_text() for page in pages]
    return collections.Counter(re.findall(r"^\.\. automodule:: ([\w.]+)$", "\n".join(texts), re.M))


def modules() -> set[str]:
    found = set()
    for package in PACKAGES:
        for path in ROOT.glob(f"{package}/**/*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.add(".".join(part for part in parts if part != "__init__"))
    return found


def test_every_module_is_on_an_api_page() -> None:
    missing = sorted(modules() - set(listed()))
    assert not missing, f"add `.. automodule::` to a page of docs/api: {missing}"


def test_api_pages_name_no_module_that_is_gone() -> None:
    assert not sorted(set(listed()) - modules())


def test_no_module_is_listed_twice() -> None:
    assert not [module for module, times in listed().items() if times > 1]
