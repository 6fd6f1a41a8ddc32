"""Draws the objects of a scene and their places at random, with little overlap."""

import dataclasses

import numpy as np

from input_pipeline.datasets.scenes.backgrounds import BACKGROUNDS
from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.kinds import KINDS

Rng = np.random.Generator

# Range of the geometric mean of width and height, as a share of the image side. The gaps between the
# three classes make it easy to see which object of a kind is the largest or the smallest.
_SIZES = ((0.28, 0.32), (0.37, 0.42), (0.48, 0.54))
_SIZE_SHARES = (0.25, 0.45, 0.30)
_HERO_SIZE = (0.60, 0.68)
_HERO_SHARE = 0.15
_MAX_OVERLAP = 0.3  # Share of the smaller box.


@dataclasses.dataclass(frozen=True)
class Wish:
    """An object that an image of a group must have (`present`) or must not have."""

    kind: str
    colour: str
    present: bool


@dataclasses.dataclass(frozen=True)
class Placed:
    """An object before it is drawn.

    Attributes:
        kind, colour: names out of `kinds.KINDS` and `kinds.COLOURS`.
        width: width of its box in pixels, before rotation.
        x, y: centre of its box in pixels.
        flip: whether it is mirrored, so that it faces left.
        angle: rotation in degrees, counterclockwise.
        hero: whether it is the salient object: large, in front of all others, which are drawn with less
            contrast.
    """

    kind: str
    colour: str
    width: float
    x: float
    y: float
    flip: bool
    angle: float
    hero: bool


def kinds_of(background: str) -> list[str]:
    """Names of the kinds that can stand in a background."""
    zones = BACKGROUNDS[background].zones
    return [name for name, kind in KINDS.items() if any(z in zones for z in kind.zones)]


def sample_background(rng: Rng, kind: str = "") -> str:
    """Draws the name of a background, in which `kind` can stand if it is given."""
    names = [name for name in BACKGROUNDS if not kind or kind in kinds_of(name)]
    shares = np.array([BACKGROUNDS[name].share for name in names])
    return names[rng.choice(len(names), p=shares / shares.sum())]


def sample_layout(
    background: str, config: ScenesConfig, rng: Rng, wish: Wish | None = None
) -> list[Placed]:
    """Draws the objects of a scene.

    Two or three objects are of one kind, most of the others come in pairs, and all share a few colours.
    A kind or a colour alone therefore seldom determines an object.

    Args:
        background: name out of `backgrounds.BACKGROUNDS`.
        config: settings of the build.
        rng: source of randomness.
        wish: an object that the scene is to have or not to have.

    Returns:
        The objects, the farthest first. Objects for which there is no room are left out.
    """
    hero = wish is None and rng.random() < _HERO_SHARE
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    if hero:
        count = min(count, 4)
    names = _sample_names(background, count, rng, wish)
    placed: list[Placed] = []
    for order, (kind, colour) in enumerate(names):
        spot = _place(kind, colour, background, placed, hero and order == 0, config, rng)
        if spot is not None:
            placed.append(spot)
    return sorted(placed, key=lambda o: (o.hero, _bottom(o) if not _flies(o) else 0.0))


def _sample_names(
    background: str, count: int, rng: Rng, wish: Wish | None
) -> list[tuple[str, str]]:
    available = kinds_of(background)
    order = [available[i] for i in rng.permutation(len(available))]
    if wish and wish.kind in order and (wish.present or rng.random() < 0.75):
        order.remove(wish.kind)
        order.insert(0, wish.kind)
    kinds = [order[0]] * min(count, int(rng.integers(2, 4)))
    for kind in order[1:]:
        room = count - len(kinds)
        if room <= 0:
            break
        kinds += [kind] * min(room, 2 if rng.random() < 0.8 else 1)
    scene_colours = [str(c) for c in rng.permutation(_palette())[:5]]
    if wish and wish.colour not in scene_colours and rng.random() < 0.8:
        scene_colours[0] = wish.colour
    names: list[tuple[str, str]] = []
    for kind in kinds:
        names.append((kind, _sample_colour(kind, names, scene_colours, rng, wish)))
    if wish and wish.present:
        names[0] = (wish.kind, wish.colour)
    return names


def _palette() -> list[str]:
    return list(dict.fromkeys(c for kind in KINDS.values() for c in kind.colours))


def _sample_colour(
    kind: str, names: list[tuple[str, str]], scene: list[str], rng: Rng, wish: Wish | None
) -> str:
    allowed = [
        c for c in KINDS[kind].colours if not (wish and (kind, c) == (wish.kind, wish.colour))
    ]
    used = {colour for other, colour in names if other == kind}
    choice = [c for c in allowed if c in scene] or allowed
    fresh = [c for c in choice if c not in used] or [c for c in allowed if c not in used]
    if fresh and rng.random() < 0.8:
        choice = fresh
    return choice[rng.integers(len(choice))]


def _place(
    kind: str,
    colour: str,
    background: str,
    placed: list[Placed],
    hero: bool,
    config: ScenesConfig,
    rng: Rng,
) -> Placed | None:
    """Finds a spot with little overlap; `None` after 40 tries."""
    spec, side = KINDS[kind], config.image_size
    zones = BACKGROUNDS[background].zones
    names = [z for z in spec.zones if z in zones]
    size_class = _HERO_SIZE if hero else _SIZES[rng.choice(3, p=_SIZE_SHARES)]
    for attempt in range(40):
        low, high = size_class if attempt < 25 else _SIZES[0]
        width = rng.uniform(low, high) * side * spec.aspect**0.5
        height = width / spec.aspect
        zone = names[rng.integers(len(names))]
        level = rng.uniform(*zones[zone]) * side
        y = level if zone == "sky" else level - height / 2
        x = rng.uniform(min(width / 2, side / 2), max(side - width / 2, side / 2))
        y = float(np.clip(y, height * 0.46, side - height * 0.5))
        flip, angle = bool(rng.random() < 0.5), rng.uniform(-spec.tilt, spec.tilt)
        spot = Placed(kind, colour, width, x, y, flip, angle, hero)
        if all(_overlap(spot, other) < _MAX_OVERLAP for other in placed):
            return spot
    return None


def _flies(spot: Placed) -> bool:
    return "sky" in KINDS[spot.kind].zones


def _bottom(spot: Placed) -> float:
    return spot.y + spot.width / KINDS[spot.kind].aspect / 2


def _overlap(a: Placed, b: Placed) -> float:
    """Intersection of two boxes over the smaller box."""
    ha, hb = a.width / KINDS[a.kind].aspect, b.width / KINDS[b.kind].aspect
    across = min(a.x + a.width / 2, b.x + b.width / 2) - max(a.x - a.width / 2, b.x - b.width / 2)
    down = min(a.y + ha / 2, b.y + hb / 2) - max(a.y - ha / 2, b.y - hb / 2)
    return max(across, 0.0) * max(down, 0.0) / min(a.width * ha, b.width * hb)
