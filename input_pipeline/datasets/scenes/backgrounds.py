"""Textured backgrounds, each with the zones in which objects may stand."""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Background:
    """A background.

    Attributes:
        zones: name of a zone -> (low, high), in image heights from the top: range of the object's centre
            in the `"sky"`, of its lower edge in other zones.
        paint: `(size, rng) -> f32 [size, size, 3]`, RGB, about 0..255.
        share: relative frequency.
    """

    zones: dict[str, tuple[float, float]]
    paint: Callable[[int, Rng], np.ndarray]
    share: float


def _noise(size: int, rng: Rng, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise, f32 `[size, size]`, interpolated from N(0, 1) on a grid `cells` (rows, columns)."""
    grid = rng.standard_normal(cells, np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _ramp(size: int, top: tuple[float, ...], bottom: tuple[float, ...]) -> np.ndarray:
    t = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    ends = np.array([top, bottom], np.float32)
    return np.repeat(ends[0] * (1 - t) + ends[1] * t, size, axis=1)


def _over(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    # In place: a fresh array costs more than the arithmetic.
    image = above - below
    image *= alpha[..., None]
    image += below
    return image


def _below(size: int, edge: np.ndarray | float) -> np.ndarray:
    """f32 `[size, size]`: 0 above and 1 below the height `edge` (in image heights), antialiased."""
    rows = np.arange(size, dtype=np.float32)[:, None] + 0.5
    return np.clip(rows - np.asarray(edge, np.float32) * size + 0.5, 0, 1) * np.ones(
        (1, size), np.float32
    )


def _wavy(size: int, rng: Rng, level: float, swing: float) -> np.ndarray:
    """Heights of a smooth horizontal line around `level`: f32 `[1, size]`, in image heights."""
    return (level + swing * _noise(size, rng, (1, 5))[:1]).astype(np.float32)


def _grain(image: np.ndarray, rng: Rng, strength: float, cells: tuple[int, int]) -> np.ndarray:
    gain = _noise(image.shape[0], rng, cells)
    gain *= strength
    gain += 1
    return image * gain[..., None]


def _sky(size: int, rng: Rng) -> np.ndarray:
    tops = ((92, 152, 222), (120, 176, 232), (150, 160, 205), (240, 178, 130))
    lows = ((190, 220, 244), (220, 236, 246), (236, 214, 206), (252, 226, 190))
    pick = rng.integers(len(tops))
    sky = _ramp(size, tops[pick], lows[pick])
    clouds = _noise(size, rng, (9, 5)) + 0.6 * _noise(size, rng, (22, 12))
    return _over(sky, np.full_like(sky, 248), np.clip(clouds * 0.55 - 0.25, 0, 0.75))


def _grass(size: int, rng: Rng) -> np.ndarray:
    tones = ((128, 176, 84), (146, 186, 92), (120, 166, 100))
    tone = tones[rng.integers(len(tones))]
    ground = _ramp(size, tuple(1.08 * c for c in tone), tuple(0.8 * c for c in tone))
    blades = _grain(ground, rng, 0.1, (size // 3, size))
    return _grain(blades, rng, 0.07, (8, 8))


def _sand(size: int, rng: Rng) -> np.ndarray:
    ground = _ramp(size, (232, 210, 160), (214, 184, 128))
    return _grain(_grain(ground, rng, 0.04, (size, size)), rng, 0.05, (14, 4))


def _water(size: int, rng: Rng) -> np.ndarray:
    tones = ((96, 166, 204), (84, 176, 184), (104, 150, 196))
    tone = tones[rng.integers(len(tones))]
    sea = _ramp(size, tuple(1.15 * c for c in tone), tuple(0.72 * c for c in tone))
    waves = _noise(size, rng, (size // 4, 9)) + 0.5 * _noise(size, rng, (size // 2, 18))
    sea = _grain(sea, rng, 0.06, (6, 6))
    return _over(sea, np.full_like(sea, 236), np.clip(waves * 0.25 - 0.3, 0, 0.5))


def _meadow(size: int, rng: Rng) -> np.ndarray:
    image = _sky(size, rng)
    hills = _grain(_ramp(size, (126, 160, 140), (110, 150, 110)), rng, 0.05, (20, 20))
    image = _over(image, hills, _below(size, _wavy(size, rng, 0.38, 0.035)))
    return _over(image, _grass(size, rng), _below(size, _wavy(size, rng, 0.45, 0.012)))


def _desert(size: int, rng: Rng) -> np.ndarray:
    image = _sky(size, rng)
    dunes = _grain(_ramp(size, (222, 170, 120), (206, 150, 100)), rng, 0.04, (20, 10))
    image = _over(image, dunes, _below(size, _wavy(size, rng, 0.38, 0.04)))
    return _over(image, _sand(size, rng), _below(size, _wavy(size, rng, 0.46, 0.02)))


def _snow(size: int, rng: Rng) -> np.ndarray:
    image = _sky(size, rng)
    peaks = _grain(_ramp(size, (170, 186, 208), (186, 198, 214)), rng, 0.04, (12, 12))
    image = _over(image, peaks, _below(size, _wavy(size, rng, 0.33, 0.06)))
    snow = _grain(_ramp(size, (214, 224, 236), (196, 208, 226)), rng, 0.025, (10, 6))
    return _over(image, snow, _below(size, _wavy(size, rng, 0.44, 0.015)))


def _street(size: int, rng: Rng) -> np.ndarray:
    image = _sky(size, rng)
    blocks = np.repeat(rng.uniform(0.16, 0.4, 9), -(-size // 9))[:size][None].astype(np.float32)
    walls = _ramp(size, (168, 164, 172), (146, 142, 150))
    columns = np.arange(size) % max(size // 24, 4) < 2
    lit = (np.arange(size) % max(size // 20, 5) < 3)[:, None] & columns[None]
    image = _over(image, np.where(lit[..., None], walls * 0.85, walls), _below(size, blocks))
    pavement = _grain(_ramp(size, (186, 180, 172), (176, 170, 164)), rng, 0.04, (size, size))
    image = _over(image, pavement, _below(size, 0.43))
    road = _grain(_ramp(size, (128, 128, 134), (106, 106, 112)), rng, 0.05, (size, size))
    image = _over(image, road, _below(size, 0.58))
    dashes = (np.arange(size) % (size // 4) < size // 8) * np.ones((size, 1))
    line = _below(size, 0.77) * (1 - _below(size, 0.79)) * dashes
    return _over(image, np.full_like(image, 226), line.astype(np.float32))


def _sea(size: int, rng: Rng) -> np.ndarray:
    return _over(_sky(size, rng), _water(size, rng), _below(size, 0.3))


def _beach(size: int, rng: Rng) -> np.ndarray:
    image = _over(_sky(size, rng), _water(size, rng), _below(size, 0.27))
    shore = _wavy(size, rng, 0.62, 0.02)
    image = _over(image, np.full_like(image, 240), _below(size, shore - 0.015))
    return _over(image, _sand(size, rng), _below(size, shore))


def _room(size: int, rng: Rng) -> np.ndarray:
    tones = ((214, 200, 178), (184, 204, 196), (206, 190, 206), (190, 200, 216))
    tone = np.array(tones[rng.integers(len(tones))], np.float32)
    image = _ramp(size, tuple(tone), tuple(tone * 0.9))
    stripes = (np.arange(size) // max(size // 16, 4) % 2)[None, :, None]
    image = _grain(image * (1 - 0.05 * stripes), rng, 0.02, (10, 10))
    shelf = _below(size, _SHELF) * (1 - _below(size, _SHELF + 0.035))
    image = _over(image, np.full_like(image, (148, 104, 64)), shelf)
    shade = _below(size, _SHELF + 0.035) * (1 - _below(size, _SHELF + 0.06))
    image = _over(image, image * 0.75, shade)
    wood = ((176, 128, 82), (150, 108, 74), (196, 156, 112))[rng.integers(3)]
    floor = _ramp(size, tuple(0.92 * c for c in wood), tuple(1.05 * c for c in wood))
    floor = _grain(_grain(floor, rng, 0.05, (size, 6)), rng, 0.03, (12, 3))
    boards = np.zeros((size, 1), np.float32)
    boards[:: max(size // 12, 6)] = 0.25
    floor = _over(floor, floor * 0.5, boards * np.ones((1, size), np.float32))
    return _over(image, floor, _below(size, 0.56))


_SHELF = 0.42
_LAND = {"sky": (0.16, 0.34), "ground": (0.5, 0.97)}
BACKGROUNDS: dict[str, Background] = {
    "meadow": Background(_LAND, _meadow, 0.2),
    "desert": Background(_LAND, _desert, 0.1),
    "snow": Background(_LAND, _snow, 0.1),
    "street": Background(_LAND, _street, 0.14),
    "sea": Background({"sky": (0.15, 0.3), "water": (0.42, 0.97)}, _sea, 0.16),
    "beach": Background(
        {"sky": (0.15, 0.28), "water": (0.4, 0.6), "ground": (0.72, 0.97)}, _beach, 0.08
    ),
    "room": Background({"shelf": (_SHELF, _SHELF + 0.01), "table": (0.64, 0.97)}, _room, 0.22),
}
