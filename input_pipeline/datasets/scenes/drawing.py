"""Draws a layout: makes the image, the visible masks and the scene graph."""

import dataclasses

import cv2
import numpy as np

from input_pipeline.datasets.scenes.backgrounds import BACKGROUNDS
from input_pipeline.datasets.scenes.config import ScenesConfig
from input_pipeline.datasets.scenes.graph import ObjectNode, PartNode, SceneGraph
from input_pipeline.datasets.scenes.kinds import COLOURS, KINDS
from input_pipeline.datasets.scenes.layout import Placed
from input_pipeline.datasets.scenes.painter import Colour, Painter

#: Least visible area of an object and of a part, in pixels of a 128 x 128 image; scaled for other sizes.
#: Smaller objects are removed from the scene; smaller parts are no targets.
MIN_OBJECT_AREA, MIN_PART_AREA = 250, 60
#: Least visible share of an object and of a part, with the same consequences.
MIN_VISIBLE = 0.5
MIN_PART_VISIBLE = 0.5


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: u8 `[S, S, 3]`, RGB.
        graph: the scene graph.
        masks: for each target its visible pixels, bool `[S, S]`: first all objects, in the order of the
            graph, then the parts that are targets.
        categories: kind of each object or name of each part, in the order of `masks`.
        parents: of each target that is a part, the index of its object; -1 for objects.
    """

    image: np.ndarray
    graph: SceneGraph
    masks: tuple[np.ndarray, ...]
    categories: tuple[str, ...]
    parents: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A drawn object: the place of its canvas in the image, and the three planes of `Painter.finish`."""

    spot: Placed
    left: int
    top: int
    colour: np.ndarray
    alpha: np.ndarray
    label: np.ndarray
    parts: tuple[str, ...]


def draw_scene(
    background: str, layout: list[Placed], config: ScenesConfig, rng: np.random.Generator
) -> Scene:
    """Draws the objects of a layout, the farthest first; leaves out those that are hardly visible.

    Args:
        background: name out of `backgrounds.BACKGROUNDS`.
        layout: the objects, the farthest first.
        config: settings of the build.
        rng: source of the random details.
    """
    side = config.image_size
    image = np.clip(BACKGROUNDS[background].paint(side, rng), 0, 255).astype(np.float32)
    drawn = [_draw_object(spot, side, rng) for spot in layout]
    layers, owner, label = _drop_hidden(drawn, side)
    hero = any(layer.spot.hero for layer in layers)
    for layer in layers:
        _cast_shadow(image, layer)
        _paste(image, layer, 0.2 if hero and not layer.spot.hero else 0.0)
    return _describe(background, _photograph(image, rng), layers, owner, label)


def _draw_object(spot: Placed, side: int, rng: np.random.Generator) -> _Layer:
    kind = KINDS[spot.kind]
    painter = Painter(
        spot.width, kind.aspect, flip=spot.flip, angle=spot.angle, headroom=kind.headroom
    )
    kind.draw(painter, _vary(COLOURS[spot.colour], rng), rng)
    for name in spot.extras:
        kind.extras[name](painter)
    colour, alpha, label = painter.finish()
    rows = np.linspace(1.1, 0.84, painter.height, dtype=np.float32)[:, None]
    columns = np.linspace(1.05, 0.95, painter.width, dtype=np.float32)[None]
    texture = rng.standard_normal(alpha.shape, np.float32)
    texture *= 0.025
    texture += 1
    texture *= rows * columns
    colour *= texture[..., None]
    left, top = round(spot.x - painter.width / 2), round(spot.y - painter.height / 2)
    return _crop(_Layer(spot, left, top, colour, alpha, label, tuple(painter.parts)), side)


def _vary(colour: Colour, rng: np.random.Generator) -> Colour:
    """Varies a colour within the same colour name: brightness by +-8 %, each channel by +-10."""
    values = np.array(colour) * rng.uniform(0.92, 1.08) + rng.uniform(-10, 10, 3)
    r, g, b = (float(v) for v in np.clip(values, 0, 255))
    return r, g, b


def _crop(layer: _Layer, side: int) -> _Layer:
    height, width = layer.alpha.shape
    rows = slice(max(0, -layer.top), min(height, side - layer.top))
    columns = slice(max(0, -layer.left), min(width, side - layer.left))
    return dataclasses.replace(
        layer,
        left=max(layer.left, 0),
        top=max(layer.top, 0),
        colour=layer.colour[rows, columns],
        alpha=layer.alpha[rows, columns],
        label=layer.label[rows, columns],
    )


def _window(layer: _Layer) -> tuple[slice, slice]:
    height, width = layer.alpha.shape
    return slice(layer.top, layer.top + height), slice(layer.left, layer.left + width)


def _count(pixels: np.ndarray) -> int:
    return int(np.count_nonzero(pixels))


def _owners(layers: list[_Layer], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the layer that a pixel shows, i8 `[side, side]` (-1: none), and its part label, u8."""
    owner = np.full((side, side), -1, np.int8)
    label = np.zeros((side, side), np.uint8)
    for number, layer in enumerate(layers):
        window, inside = _window(layer), layer.label > 0
        owner[window][inside] = number
        label[window][inside] = layer.label[inside]
    return owner, label


def _drop_hidden(layers: list[_Layer], side: int) -> tuple[list[_Layer], np.ndarray, np.ndarray]:
    """Removes objects of which too little is visible, one at a time: others may then show more.

    Returns:
        The other layers, and their `_owners`.
    """
    smallest = MIN_OBJECT_AREA * (side / 128) ** 2
    while True:
        owner, label = _owners(layers, side)
        for number, layer in enumerate(layers):
            seen, full = _count(owner == number), _count(layer.label)
            if seen < smallest or seen < MIN_VISIBLE * full:
                layers = [other for other in layers if other is not layer]
                break
        else:
            return layers, owner, label


def _cast_shadow(image: np.ndarray, layer: _Layer) -> None:
    """Darkens the ground under an object that stands on it."""
    if not {"ground", "table"} & set(KINDS[layer.spot.kind].zones):
        return
    side, width = image.shape[0], layer.alpha.shape[1]
    bottom = layer.top + layer.alpha.shape[0] - 2
    dark = np.zeros((side, side), np.float32)
    centre = (layer.left + width // 2, bottom)
    cv2.ellipse(dark, centre, (round(width * 0.48), max(2, width // 14)), 0, 0, 360, 1.0, -1)
    top = max(0, bottom - width // 6)
    band = cv2.GaussianBlur(dark[top : bottom + width // 6], (0, 0), max(1.0, width / 40))
    image[top : bottom + width // 6] *= (1 - 0.38 * band)[..., None]


def _paste(image: np.ndarray, layer: _Layer, haze: float) -> None:
    """Pastes an object onto the image; `haze` is the share of the background that shines through."""
    patch, alpha = image[_window(layer)], layer.alpha[..., None] * (1 - haze)
    patch *= 1 - alpha
    patch += layer.colour * (1 - haze)


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies exposure, tint and sensor noise; returns u8 RGB."""
    gain = rng.uniform(0.94, 1.05) * rng.uniform(0.98, 1.02, 3)
    noise = rng.standard_normal(image.shape, np.float32)
    # In place: fresh arrays cost more than the arithmetic.
    noise *= rng.uniform(1.0, 3.0)
    noise += image * gain.astype(np.float32)
    np.clip(noise, 0, 255, out=noise)
    return np.rint(noise, out=noise).astype(np.uint8)


def _describe(
    background: str,
    image: np.ndarray,
    layers: list[_Layer],
    owner: np.ndarray,
    label: np.ndarray,
) -> Scene:
    side = image.shape[0]
    cells, scale = np.arange(side), (side / 128) ** 2
    masks = [owner == number for number in range(len(layers))]
    categories = [layer.spot.kind for layer in layers]
    parents = [-1] * len(layers)
    nodes = []
    for number, layer in enumerate(layers):
        parts = []
        for name in (*KINDS[layer.spot.kind].parts, *layer.spot.extras):
            code = layer.parts.index(name) + 1
            region = masks[number] & (label == code)
            area, full = _count(region), _count(layer.label == code)
            seen = area >= MIN_PART_AREA * scale and area >= MIN_PART_VISIBLE * full
            parts.append(PartNode(name, area, len(masks) if seen else -1))
            if seen:
                masks.append(region)
                categories.append(name)
                parents.append(number)
        rows, columns = np.count_nonzero(masks[number], 1), np.count_nonzero(masks[number], 0)
        area = int(rows.sum())
        nodes.append(
            ObjectNode(
                kind=layer.spot.kind,
                colour=layer.spot.colour,
                x=round((int(columns @ cells) / area + 0.5) / side, 3),
                y=round((int(rows @ cells) / area + 0.5) / side, 3),
                area=area,
                full_area=_count(layer.label),
                depth=len(layers) - 1 - number,
                target=number,
                parts=tuple(parts),
            )
        )
    graph = SceneGraph(background, side, tuple(nodes))
    return Scene(image, graph, tuple(masks), tuple(categories), tuple(parents))
