"""The kinds of objects: their named parts, how each is drawn, where it may stand, in which colours."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from input_pipeline.datasets.scenes.painter import Colour, Painter, mix, shade

#: Colours of bodies, which differ clearly from one another.
COLOURS: dict[str, Colour] = {
    "red": (205, 38, 42),
    "orange": (243, 137, 28),
    "yellow": (247, 220, 58),
    "green": (52, 150, 62),
    "blue": (42, 92, 205),
    "purple": (138, 66, 178),
    "white": (240, 240, 236),
    "black": (44, 44, 50),
}
_ALL = tuple(COLOURS)
_GLASS, _RUBBER, _METAL = (176, 216, 236), (38, 38, 42), (172, 178, 186)
_WOOD, _LEAF, _CREAM = (126, 84, 50), (70, 142, 60), (246, 238, 214)
_CASE, _PINK, _STRAW = (142, 100, 62), (240, 150, 190), (216, 180, 110)

Draw = Callable[[Painter, Colour, np.random.Generator], None]
#: Paints an extra on an object that is already painted.
DrawExtra = Callable[[Painter], None]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        plural: plural of its name.
        aspect: width / height, headroom included.
        parts: names of the parts that expressions may mention.
        zones: zones of a background in which it may stand.
        draw: paints it, facing right, in a given colour.
        colours: colours that its body may have.
        tilt: greatest rotation in degrees, to either side.
        headroom: room above y = 0, in widths, for an extra.
        extras: name -> drawing of parts that only some objects of the kind have.
    """

    plural: str
    aspect: float
    parts: tuple[str, ...]
    zones: tuple[str, ...]
    draw: Draw
    colours: tuple[str, ...] = _ALL
    tilt: float = 3.0
    headroom: float = 0.0
    extras: Mapping[str, DrawExtra] = dataclasses.field(default_factory=dict)


def _wheel(p: Painter, x: float, y: float, radius: float) -> None:
    p.ellipse((x, y), (radius, radius), "wheels", _RUBBER)
    p.ellipse((x, y), (radius * 0.5, radius * 0.5), "wheels", _METAL)


def _car(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    tall = rng.uniform(0.0, 0.03)
    p.polygon([(0.2, 0.24), (0.31, 0.03 - tall / 2), (0.64, 0.03 - tall / 2), (0.8, 0.24)], "", c)
    glass = shade(_GLASS, rng.uniform(0.85, 1.1))
    p.polygon([(0.26, 0.23), (0.34, 0.07), (0.475, 0.07), (0.475, 0.23)], "windows", glass)
    p.polygon([(0.52, 0.23), (0.52, 0.07), (0.615, 0.07), (0.73, 0.23)], "windows", glass)
    p.curve([(0.0, 0.2), (0.3, 0.21), (0.75, 0.2), (1.0, 0.23), (1.02, 0.44), (-0.02, 0.44)], "", c)
    p.stroke([(0.06, 0.33), (0.95, 0.33)], 0.012, shade(c, 0.72))
    p.stroke([(0.5, 0.24), (0.5, 0.41)], 0.012, shade(c, 0.66))
    p.ellipse((0.95, 0.29), (0.035, 0.03), "", (255, 244, 180))
    p.box(0.01, 0.26, 0.045, 0.32, "", (190, 30, 30))
    _wheel(p, 0.23, 0.41, 0.125)
    _wheel(p, 0.77, 0.41, 0.125)


def _house(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    roof = ((150, 66, 44), (96, 88, 94), (118, 78, 52))[rng.integers(3)]
    p.box(0.7, 0.06, 0.83, 0.36, "", (150, 98, 80))
    p.box(0.08, 0.38, 0.92, 1.0, "", c)
    for y in np.arange(0.48, 1.0, 0.09):
        p.stroke([(0.1, y), (0.9, y)], 0.01, shade(c, 0.86))
    p.polygon([(-0.01, 0.44), (0.24, 0.08), (0.76, 0.08), (1.01, 0.44)], "roof", roof)
    for y in (0.2, 0.32):
        p.stroke(
            [(0.24 - (y - 0.08) * 0.6, y), (0.76 + (y - 0.08) * 0.6, y)], 0.012, shade(roof, 0.75)
        )
    door = ((96, 60, 36), (60, 70, 96), (110, 40, 40))[rng.integers(3)]
    p.box(0.17, 0.58, 0.41, 1.0, "door", door)
    p.ellipse((0.37, 0.8), (0.022, 0.022), "door", (230, 200, 90), outline=0)
    p.box(0.54, 0.55, 0.82, 0.81, "window", _CREAM)
    p.box(0.57, 0.58, 0.79, 0.78, "window", _GLASS)
    p.stroke([(0.68, 0.57), (0.68, 0.79)], 0.02, _CREAM)


def _tree(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    p.polygon([(0.4, 1.33), (0.43, 0.7), (0.57, 0.7), (0.62, 1.33)], "trunk", _WOOD)
    p.stroke([(0.5, 1.28), (0.49, 0.9)], 0.02, shade(_WOOD, 0.75))
    blobs = [(0.5, 0.34, 0.34), (0.25, 0.52, 0.25), (0.75, 0.52, 0.25), (0.5, 0.66, 0.26)]
    blobs += [(0.32, 0.26, 0.22), (0.68, 0.26, 0.22)]
    for x, y, r in blobs:
        p.ellipse((x, y), (r, r), "crown", c, outline=0.72)
    for x, y, r in blobs:
        p.ellipse((x, y), (r * 0.88, r * 0.88), "crown", c, outline=0)
    spots = [(*rng.uniform((0.08, 0.05), (0.92, 0.9)), 0.035) for _ in range(16)]
    p.speckle("crown", shade(c, 0.8), spots)
    spots = [(*rng.uniform((0.1, 0.02), (0.7, 0.6)), 0.035) for _ in range(12)]
    p.speckle("crown", shade(c, 1.25), spots)


def _boat(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    p.box(0.47, 0.0, 0.51, 0.8, "", shade(_WOOD, 0.8))
    sail = shade(_CREAM, rng.uniform(0.95, 1.3))
    p.curve([(0.53, 0.02), (0.56, 0.04), (0.96, 0.66), (0.94, 0.7), (0.53, 0.68)], "sail", sail)
    p.polygon([(0.45, 0.1), (0.45, 0.68), (0.08, 0.68)], "sail", sail)
    for y in (0.3, 0.48):
        p.stroke([(0.55, y), (0.53 + (y - 0.02) * 0.55, y)], 0.012, shade(sail, 0.85))
    p.polygon([(0.0, 0.74), (1.0, 0.74), (0.82, 1.0), (0.16, 1.0)], "hull", c)
    p.polygon([(0.0, 0.74), (1.0, 0.74), (0.97, 0.79), (0.03, 0.79)], "hull", shade(c, 1.35))
    for x in (0.3, 0.5, 0.7):
        p.ellipse((x, 0.88), (0.03, 0.03), "hull", shade(c, 0.5), outline=0)


def _fish(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    fin = shade(c, 0.62) if sum(c) > 250 else mix(c, (150, 150, 160), 0.5)
    p.curve(
        [(0.24, 0.31), (0.0, 0.04), (-0.02, 0.1), (0.07, 0.31), (-0.02, 0.52), (0.0, 0.58)],
        "tail",
        fin,
    )
    p.curve([(0.35, 0.14), (0.4, -0.01), (0.56, -0.03), (0.72, 0.14)], "fins", fin)
    p.curve([(0.42, 0.48), (0.46, 0.62), (0.58, 0.64), (0.64, 0.48)], "fins", fin)
    p.curve([(0.12, 0.31), (0.4, 0.06), (0.8, 0.06), (1.06, 0.31), (0.8, 0.56), (0.4, 0.56)], "", c)
    stripe = shade(c, 0.75) if rng.random() < 0.5 else shade(c, 1.35)
    for x in (0.36, 0.5):
        p.curve(
            [
                (x, 0.12),
                (x + 0.05, 0.12),
                (x + 0.09, 0.31),
                (x + 0.05, 0.5),
                (x, 0.5),
                (x + 0.03, 0.31),
            ],
            "",
            stripe,
            outline=0,
        )
    p.ellipse((0.82, 0.25), (0.06, 0.06), "", (250, 250, 250))
    p.ellipse((0.835, 0.25), (0.03, 0.03), "", (20, 20, 24), outline=0)
    p.stroke([(0.9, 0.4), (0.98, 0.37)], 0.016, shade(c, 0.5))


def _bird(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    dark = shade(c, 0.6) if sum(c) > 250 else mix(c, (150, 150, 160), 0.5)
    p.polygon([(0.24, 0.44), (0.0, 0.36), (0.0, 0.62), (0.28, 0.58)], "tail", dark)
    p.polygon([(0.86, 0.16), (1.02, 0.25), (0.86, 0.33)], "beak", (244, 162, 40))
    p.curve([(0.1, 0.46), (0.32, 0.28), (0.6, 0.28), (0.84, 0.4), (0.7, 0.72), (0.36, 0.74)], "", c)
    p.ellipse((0.75, 0.23), (0.17, 0.17), "", c)
    p.ellipse((0.7, 0.33), (0.14, 0.13), "", c, outline=0)
    up = rng.uniform(-0.02, 0.06)
    p.curve(
        [
            (0.28, 0.4),
            (0.22, -0.04 + up),
            (0.3, -0.04 + up),
            (0.64, 0.36),
            (0.58, 0.54),
            (0.36, 0.52),
        ],
        "wing",
        dark,
    )
    p.stroke([(0.36, 0.44), (0.3, 0.14 + up)], 0.014, shade(dark, 0.75))
    p.stroke([(0.46, 0.46), (0.38, 0.2 + up)], 0.014, shade(dark, 0.75))
    p.ellipse((0.8, 0.2), (0.042, 0.042), "", (250, 250, 250))
    p.ellipse((0.81, 0.2), (0.022, 0.022), "", (20, 20, 24), outline=0)


def _plane(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    wing = mix(_METAL, c, 0.12)
    p.polygon([(0.02, 0.02), (0.13, 0.02), (0.24, 0.22), (0.06, 0.24)], "tail", wing)
    p.polygon([(0.5, 0.2), (0.4, 0.03), (0.48, 0.03), (0.64, 0.2)], "wings", shade(wing, 0.85))
    p.curve(
        [(-0.02, 0.16), (0.1, 0.15), (0.8, 0.13), (1.06, 0.25), (0.8, 0.37), (0.15, 0.33)], "", c
    )
    p.curve([(0.84, 0.17), (0.91, 0.18), (0.97, 0.23), (0.84, 0.24)], "", _GLASS)
    for x in np.arange(0.26, 0.8, 0.085):
        p.box(x, 0.19, x + 0.045, 0.235, "", _GLASS, outline=0)
    p.polygon([(0.42, 0.28), (0.66, 0.28), (0.42, 0.5), (0.29, 0.5)], "wings", wing)
    p.stroke([(0.2, 0.3), (0.9, 0.3)], 0.014, shade(c, 0.75))


def _cup(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    p.ellipse((0.85, 0.38), (0.19, 0.2), "handle", c)
    p.polygon([(0.1, 0.04), (0.78, 0.04), (0.68, 0.78), (0.2, 0.78)], "", c)
    p.ellipse((0.44, 0.06), (0.34, 0.06), "", shade(c, 1.3))
    p.ellipse((0.44, 0.065), (0.29, 0.04), "", (88, 54, 34), outline=0)
    for x in (0.28, 0.44, 0.6):
        p.ellipse((x, 0.42), (0.05, 0.06), "", shade(c, 1.45 if sum(c) < 620 else 0.8), outline=0)
    p.ellipse((0.44, 0.8), (0.44, 0.085), "saucer", mix((214, 206, 196), c, 0.1))


def _lamp(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    base = shade(_METAL, rng.uniform(0.6, 0.95))
    p.box(0.44, 0.7, 0.56, 1.45, "base", base)
    p.curve(
        [(0.12, 1.62), (0.2, 1.4), (0.8, 1.4), (0.88, 1.62), (0.8, 1.66), (0.2, 1.66)], "base", base
    )
    p.polygon([(0.26, 0.02), (0.74, 0.02), (1.0, 0.78), (0.0, 0.78)], "shade", c)
    p.polygon([(0.01, 0.71), (0.99, 0.71), (1.0, 0.78), (0.0, 0.78)], "shade", shade(c, 1.35))
    for x in (0.36, 0.5, 0.64):
        p.stroke([(x, 0.06), (0.5 + (x - 0.5) * 1.9, 0.7)], 0.018, shade(c, 0.8))


def _robot(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    grey = shade(_METAL, rng.uniform(0.75, 1.05))
    p.box(0.26, 0.92, 0.44, 1.32, "legs", grey, radius=0.03)
    p.box(0.56, 0.92, 0.74, 1.32, "legs", grey, radius=0.03)
    lift = rng.uniform(-0.1, 0.06)
    p.polygon([(0.24, 0.52), (0.02, 0.8 + lift), (0.12, 0.92 + lift), (0.26, 0.74)], "arms", grey)
    p.polygon([(0.76, 0.52), (0.98, 0.8 + lift), (0.88, 0.92 + lift), (0.74, 0.74)], "arms", grey)
    p.box(0.2, 0.47, 0.8, 0.98, "", c, radius=0.06)
    p.box(0.33, 0.6, 0.67, 0.82, "", shade(c, 1.4 if sum(c) < 620 else 0.8), radius=0.03)
    p.ellipse((0.43, 0.71), (0.05, 0.05), "", (220, 60, 60), outline=0)
    p.ellipse((0.57, 0.71), (0.05, 0.05), "", (70, 190, 90), outline=0)
    p.box(0.47, 0.0, 0.53, 0.14, "head", shade(grey, 0.7))
    p.box(0.27, 0.1, 0.73, 0.45, "head", grey, radius=0.06)
    for x in (0.4, 0.6):
        p.ellipse((x, 0.25), (0.06, 0.06), "head", (255, 240, 130))
        p.ellipse((x, 0.25), (0.025, 0.025), "head", (20, 20, 24), outline=0)
    p.stroke([(0.38, 0.37), (0.62, 0.37)], 0.025, shade(grey, 0.45))


def _mushroom(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    p.curve(
        [(0.34, 0.45), (0.66, 0.45), (0.76, 1.08), (0.5, 1.06), (0.24, 1.08)],
        "stem",
        (236, 222, 196),
    )
    p.stroke([(0.5, 0.6), (0.5, 0.95)], 0.02, (206, 190, 160))
    p.ellipse((0.5, 0.53), (0.5, 0.52), "cap", c, arc=(180, 360))
    p.ellipse((0.5, 0.53), (0.5, 0.07), "cap", shade(c, 0.78))
    dots = shade(c, 1.8) if sum(c) < 620 else shade(c, 0.72)
    spots = [(0.5, 0.14, 0.085), (0.24, 0.33, 0.075), (0.74, 0.31, 0.08), (0.5, 0.4, 0.06)]
    p.speckle("cap", dots, spots)


def _flower(p: Painter, c: Colour, rng: np.random.Generator) -> None:
    p.box(0.455, 0.7, 0.545, 1.5, "", _LEAF)
    p.curve([(0.5, 1.3), (0.62, 0.98), (1.0, 0.92), (0.88, 1.26)], "leaves", shade(_LEAF, 1.15))
    p.curve([(0.5, 1.42), (0.38, 1.1), (0.0, 1.04), (0.12, 1.38)], "leaves", shade(_LEAF, 1.15))
    turn = rng.uniform(0, 60)
    for angle in np.radians(turn + np.arange(0, 360, 60)):
        centre = (0.5 + 0.27 * np.cos(angle), 0.46 + 0.27 * np.sin(angle))
        p.ellipse(centre, (0.22, 0.155), "petals", c, angle=float(np.degrees(angle)))
    heart = (250, 206, 60) if min(c[0], c[1]) < 190 or c[2] > 200 else (120, 70, 40)
    p.ellipse((0.5, 0.46), (0.15, 0.15), "", heart)


def _roof_rack(p: Painter) -> None:
    p.box(0.28, -0.13, 0.47, 0.0, "roof rack", _CASE)
    p.box(0.47, -0.1, 0.67, 0.0, "roof rack", shade(_CASE, 1.3))
    p.box(0.25, -0.02, 0.7, 0.02, "roof rack", _RUBBER)


def _house_flag(p: Painter) -> None:
    p.box(0.46, -0.24, 0.51, 0.12, "flag", _METAL)
    p.curve([(0.51, -0.24), (0.7, -0.2), (0.92, -0.24), (0.92, 0.0), (0.7, 0.04), (0.51, 0.0)],
            "flag", _PINK)  # fmt: skip


def _boat_flag(p: Painter) -> None:
    p.box(0.465, -0.24, 0.515, 0.04, "flag", _METAL)
    p.curve([(0.51, -0.24), (0.7, -0.2), (0.94, -0.24), (0.94, -0.02), (0.7, 0.02), (0.51, -0.02)],
            "flag", _PINK)  # fmt: skip


def _bird_hat(p: Painter) -> None:
    p.box(0.62, -0.14, 0.88, 0.08, "hat", _STRAW, radius=0.03)
    p.ellipse((0.75, 0.09), (0.23, 0.045), "hat", _STRAW)


def _robot_hat(p: Painter) -> None:
    p.box(0.31, -0.14, 0.69, 0.1, "hat", _STRAW, radius=0.03)
    p.ellipse((0.5, 0.1), (0.36, 0.05), "hat", _STRAW)


def _lid(p: Painter) -> None:
    p.ellipse((0.44, 0.05), (0.38, 0.1), "lid", _STRAW)
    p.ellipse((0.44, -0.06), (0.07, 0.06), "lid", shade(_STRAW, 0.8))


def _nest(p: Painter) -> None:
    for x in (0.38, 0.5, 0.62):
        p.ellipse((x, 0.38), (0.065, 0.085), "nest", _CREAM)
    p.ellipse((0.5, 0.4), (0.27, 0.17), "nest", _CASE, arc=(0, 180))


_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "white")
KINDS: dict[str, Kind] = {
    "car": Kind(
        "cars", 1.47, ("wheels", "windows"), ("ground",), _car,
        headroom=0.14, extras={"roof rack": _roof_rack},
    ),
    "house": Kind(
        "houses", 0.8, ("roof", "door", "window"), ("ground",), _house, _BRIGHT, 0, 0.25,
        {"flag": _house_flag},
    ),
    "tree": Kind(
        "trees", 0.74, ("crown", "trunk"), ("ground",), _tree, ("red", "orange", "yellow", "green"),
        extras={"nest": _nest},
    ),
    "boat": Kind(
        "boats", 0.8, ("sail", "hull"), ("water",), _boat, tilt=6,
        headroom=0.25, extras={"flag": _boat_flag},
    ),
    "fish": Kind("fish", 1.6, ("tail", "fins"), ("water",), _fish, tilt=14),
    "bird": Kind(
        "birds", 1.13, ("wing", "tail", "beak"), ("sky",), _bird, tilt=10,
        headroom=0.15, extras={"hat": _bird_hat},
    ),
    "plane": Kind("planes", 1.95, ("wings", "tail"), ("sky",), _plane, tilt=12),
    "cup": Kind(
        "cups", 1.02, ("handle", "saucer"), ("table", "shelf"), _cup, tilt=0,
        headroom=0.12, extras={"lid": _lid},
    ),
    "lamp": Kind("lamps", 0.6, ("shade", "base"), ("table", "shelf"), _lamp, tilt=0),
    "robot": Kind(
        "robots", 0.675, ("head", "arms", "legs"), ("ground", "table"), _robot,
        headroom=0.15, extras={"hat": _robot_hat},
    ),
    "mushroom": Kind("mushrooms", 0.94, ("cap", "stem"), ("ground",), _mushroom, tilt=6),
    "flower": Kind(
        "flowers", 0.66, ("petals", "leaves"), ("ground",), _flower,
        ("red", "orange", "yellow", "blue", "purple", "white"), 5,
    ),
}  # fmt: skip

#: The kind, and the extra of a known kind, that only the splits `novel_train` and `novel_test` have.
NOVEL_KIND = "mushroom"
NOVEL_EXTRA = ("tree", "nest")
