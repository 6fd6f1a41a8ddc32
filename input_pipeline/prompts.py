"""Makes expressions (prompts) for regions that a dataset names only by a category.

All datasets use these functions, because a model must be asked in the form that it was trained on.
"""

#: Prompt for salient objects (UniLSeg, Table 1).
SALIENT = "the most salient object"


def category(name: str) -> str:
    """Prompt for all regions of a category (UniLSeg, Table 1): `"road"` -> `"all road"`."""
    return f"all {_words(name)}"


def name(category_name: str) -> str:
    """The category's name as prompt (GRSer, section 5.1): `"Rolling_pin"` -> `"Rolling pin"`."""
    return _words(category_name)


def part(name: str, of: str) -> str:
    """Prompt for a part of an object (MRES, section 4.1): `"wheel", "car"` -> `"wheel of car"`."""
    return f"{_words(name)} of {_words(of)}"


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
