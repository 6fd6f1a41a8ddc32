"""Draws the objects of a scene and their places at random, with little overlap."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from input_pipeline.datasets.scenes.backgrounds import BACKGROUNDS
from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.kinds import KINDS, NOVEL_EXTRA, NOVEL_KIND

Rng = np.random.Generator
T = TypeVar("T")

# Range of the geometric mean of width and height, as a share of the image side. The gaps between the
# three classes make it easy to see which object of a kind is the largest or the smallest.
_SIZES = ((0.28, 0.32), (0.37, 0.42), (0.48, 0.54))
_SIZE_SHARES = (0.25, 0.45, 0.30)
_HERO_SIZE = (0.60, 0.68)
_HERO_SHARE = 0.15
_MAX_OVERLAP = 0.3  # Share of the smaller box.
# Shares of scenes whose objects are all of one kind, and all of one colour: "everything that is not
# red" is false nowhere else.
_ONE_KIND_SHARE, _ONE_COLOUR_SHARE = 0.06, 0.08
_PAIRED_SHARE = 0.75  # Of the kinds after the first that come in pairs.
_EXTRA_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Theme:
    """What the scenes of a pair or of a group have in common.

    Attributes:
        background: name out of `backgrounds.BACKGROUNDS`.
        kinds: names of the kinds that may occur, the likeliest first.
        colours: names of the preferred colours.
        novel: whether the scenes may have what other splits keep for later (`kinds.NOVEL_EXTRA`).
    """

    background: str
    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    novel: bool = False

    def variant(self, rng: Rng) -> "Theme":
        """A theme of the same background and first kind; the other kinds and the colours are drawn."""
        first, *rest = self.kinds
        kinds = (first, *_shuffled(rest, rng))
        one_kind = rng.random() < _ONE_KIND_SHARE
        one_colour = rng.random() < _ONE_COLOUR_SHARE
        if one_kind:
            kinds = kinds[:1]
        colours = tuple(_shuffled(_palette(), rng)[:5])
        if one_colour:
            colours = tuple(c for c in colours if c in KINDS[first].colours)[:1] or ("red",)
            kinds = tuple(k for k in kinds if colours[0] in KINDS[k].colours)
        return dataclasses.replace(self, kinds=kinds, colours=colours)

    def of_two_kinds(self, rng: Rng) -> "Theme":
        """A theme of two of the kinds, in random order."""
        return dataclasses.replace(self, kinds=tuple(_shuffled(self.kinds, rng)[:2]))


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
        extras: names of its parts that not all objects of the kind have.
    """

    kind: str
    colour: str
    width: float
    x: float
    y: float
    flip: bool
    angle: float
    hero: bool
    extras: tuple[str, ...] = ()


def sample_theme(rng: Rng, *, novel: bool = False) -> Theme:
    """Draws a background and the order of its kinds.

    Args:
        rng: source of randomness.
        novel: start with what the main splits do not have: the novel kind, or the kind of the novel
            extra.
    """
    first = (NOVEL_KIND, NOVEL_EXTRA[0])[rng.integers(2)] if novel else ""
    names = [name for name in BACKGROUNDS if not novel or first in _kinds_of(name)]
    shares = np.array([BACKGROUNDS[name].share for name in names])
    background = names[rng.choice(len(names), p=shares / shares.sum())]
    kinds = _shuffled([k for k in _kinds_of(background) if novel or k != NOVEL_KIND], rng)
    kinds.sort(key=lambda kind: kind != first)
    return Theme(background, tuple(kinds), tuple(_palette()), novel)


def narrow_theme(rng: Rng, least: int = 2) -> Theme:
    """Draws a theme of few kinds and colours, in whose scenes the same expressions are often true.

    Args:
        rng: source of randomness.
        least: least number of kinds, at most 3.
    """
    theme = sample_theme(rng)
    kinds = theme.kinds[: int(rng.integers(least, 4))]
    colours = [c for c in _palette() if any(c in KINDS[kind].colours for kind in kinds)]
    return dataclasses.replace(theme, kinds=kinds, colours=tuple(_shuffled(colours, rng)[:3]))


def sample_layout(
    theme: Theme, config: ScenesConfig, rng: Rng, like: Sequence[Placed] = ()
) -> list[Placed]:
    """Draws the objects of a scene.

    One to three objects are of the first kind, many of the others come in pairs, and all share a few
    colours. A kind or a colour alone therefore seldom determines an object.

    Args:
        theme: the kinds, in the order in which they get objects, and the colours.
        config: settings of the build.
        rng: source of randomness.
        like: objects of another scene. This one gets objects of the same kinds, sometimes one less;
            half of them keep their colour, and none keeps its place.

    Returns:
        The objects, the farthest first. Objects for which there is no room are left out.
    """
    hero = rng.random() < _HERO_SHARE
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    if hero:
        count = min(count, 4)
    names = _changed_names(theme, like, rng) if like else _sample_names(theme, count, rng)
    placed: list[Placed] = []
    for order, (kind, colour) in enumerate(names):
        extras = _sample_extras(kind, theme, rng)
        spot = _place(kind, colour, theme.background, placed, hero and order == 0, config, rng)
        if spot is not None:
            placed.append(dataclasses.replace(spot, extras=extras))
    return sorted(placed, key=lambda o: (o.hero, _bottom(o) if not _flies(o) else 0.0))


def _kinds_of(background: str) -> list[str]:
    zones = BACKGROUNDS[background].zones
    return [name for name, kind in KINDS.items() if any(z in zones for z in kind.zones)]


def _palette() -> list[str]:
    return list(dict.fromkeys(c for kind in KINDS.values() for c in kind.colours))


def _shuffled(items: Sequence[T], rng: Rng) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))]


def _sample_names(theme: Theme, count: int, rng: Rng) -> list[tuple[str, str]]:
    first, *rest = theme.kinds
    several = count if not rest else min(count, int(rng.choice((1, 2, 3), p=(0.15, 0.45, 0.4))))
    kinds = [first] * several
    for kind in rest:
        room = count - len(kinds)
        if room <= 0:
            break
        kinds += [kind] * min(room, 2 if rng.random() < _PAIRED_SHARE else 1)
    names: list[tuple[str, str]] = []
    for kind in kinds:
        names.append((kind, _sample_colour(kind, names, theme.colours, rng)))
    return names


def _changed_names(theme: Theme, like: Sequence[Placed], rng: Rng) -> list[tuple[str, str]]:
    kept = _shuffled(like, rng)[: len(like) - int(len(like) > 2 and rng.random() < 0.3)]
    names: list[tuple[str, str]] = []
    for spot in kept:
        drawn = _sample_colour(spot.kind, names, theme.colours, rng)
        names.append((spot.kind, spot.colour if rng.random() < 0.5 else drawn))
    return names


def _sample_colour(
    kind: str, names: list[tuple[str, str]], preferred: tuple[str, ...], rng: Rng
) -> str:
    used = {colour for other, colour in names if other == kind}
    choice = [c for c in KINDS[kind].colours if c in preferred] or list(KINDS[kind].colours)
    fresh = [c for c in choice if c not in used]
    if fresh and rng.random() < 0.7:
        choice = fresh
    return choice[rng.integers(len(choice))]


def _sample_extras(kind: str, theme: Theme, rng: Rng) -> tuple[str, ...]:
    worn = rng.random() < _EXTRA_SHARE
    names = [n for n in KINDS[kind].extras if theme.novel or (kind, n) != NOVEL_EXTRA]
    return tuple(names) if worn else ()


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
    taken = [_box(spot) for spot in placed]
    size_class = _HERO_SIZE if hero else _SIZES[rng.choice(3, p=_SIZE_SHARES)]
    for attempt in range(40):
        low, high = size_class if attempt < 25 else _SIZES[0]
        # One call: a call for each number takes as long as the rest of an attempt.
        dice = rng.random(6).tolist()
        width = (low + (high - low) * dice[0]) * side * spec.aspect**0.5
        height = width / spec.aspect
        zone = names[int(dice[1] * len(names))]
        near, far = zones[zone]
        level = (near + (far - near) * dice[2]) * side
        y = level if zone == "sky" else level - height / 2
        x = width / 2 + (side - width) * dice[3] if width < side else side / 2
        y = min(max(y, height * 0.46), side - height * 0.5)
        box = (x, y, width, height)
        if all(_overlap(box, other) < _MAX_OVERLAP for other in taken):
            flip, angle = dice[4] < 0.5, spec.tilt * (2 * dice[5] - 1)
            return Placed(kind, colour, width, x, y, flip, angle, hero)
    return None


def _flies(spot: Placed) -> bool:
    return "sky" in KINDS[spot.kind].zones


def _bottom(spot: Placed) -> float:
    return spot.y + spot.width / KINDS[spot.kind].aspect / 2


def _box(spot: Placed) -> tuple[float, float, float, float]:
    """Centre x and y, width and height of an object, in pixels."""
    return spot.x, spot.y, spot.width, spot.width / KINDS[spot.kind].aspect


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection of two boxes over the smaller box; each is (x, y, width, height)."""
    ax, ay, aw, ah = a
    bx, by, bw, bh = b
    across = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
    down = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
    return across * down / min(aw * ah, bw * bh) if across > 0 and down > 0 else 0.0
