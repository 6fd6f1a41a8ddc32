"""Words for regions that a dataset names by a category only.

One place, because a model that was trained on one form of a prompt must be asked in that form.
"""

#: What is asked of a saliency dataset (UniLSeg, Table 1).
SALIENT = "the most salient object"


def category(name: str) -> str:
    """Everything of a category (UniLSeg, Table 1): `"road"` -> `"all road"`."""
    return f"all {_words(name)}"


def name(category_name: str) -> str:
    """A category by its bare name (GRSer, section 5.2, of CoCA): `"Rolling_pin"` -> `"Rolling pin"`."""
    return _words(category_name)


def part(name: str, of: str) -> str:
    """A part of an object (MRES, data engine): `"wheel", "car"` -> `"wheel of car"`."""
    return f"{_words(name)} of {_words(of)}"


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
