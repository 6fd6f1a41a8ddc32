"""Values that a file may hold, for fuzzers: valid ones with parts replaced, moved and repeated."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

#: Numbers and texts at the borders of what types hold.
_ODD: tuple[Any, ...] = (
    *(0, 1, -1, 0.5, -0.0, 1e-300, 1e12, 1e308, -1e308, 10**400, -(10**400), 2**31, 2**63, 2**64),
    *(float("inf"), float("-inf"), float("nan"), True, False, None),
    *("", " ", "0", "17", "b'00'", "\ud800", "☂", "a" * 3000, "box", "\0", "[[1, 2]]", "1 2 3"),
)


def mutated(value: Any, rng: random.Random, known: Sequence[Any] = ()) -> Any:
    """A copy of a value with up to four changes."""
    made = copy.deepcopy(value)
    for _ in range(rng.randint(1, 4)):
        made = _changed(made, rng, known)
    return made


def _changed(value: Any, rng: random.Random, known: Sequence[Any]) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = _changed(value[key], rng, known)
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.1:
            del value[place]
        elif choice < 0.2:
            value[place:place] = [copy.deepcopy(value[place])] * rng.randint(1, 3)
        elif choice < 0.25:
            rng.shuffle(value)
        else:
            value[place] = _changed(value[place], rng, known)
        return value
    if type(value) in (int, float) and abs(value) < 1e300 and rng.random() < 0.5:
        near = value + rng.randint(-3, 3)
        return rng.choice([value * 0.01, near, -value, value * 2, float(value)])
    if isinstance(value, str) and value and rng.random() < 0.6:
        place = rng.randrange(len(value))
        letter = chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x3000)]))
        return value[:place] + letter * rng.randint(0, 2) + value[place + rng.randint(0, 1) :]
    return random_value(rng, known)


def random_value(rng: random.Random, known: Sequence[Any] = (), depth: int = 0) -> Any:
    """A value of JSON."""
    choice = rng.random()
    if choice < 0.15 and known:
        return copy.deepcopy(rng.choice(known))
    if choice < 0.7 or depth > 3:
        return rng.choice(_ODD)
    if choice < 0.9:
        return [random_value(rng, known, depth + 1) for _ in range(rng.randint(0, 4))]
    keys = ("size", "counts", "id", "a")
    return {rng.choice(keys): random_value(rng, known, depth + 1) for _ in range(rng.randint(0, 3))}


def as_json(value: Any) -> bytes:
    """The value as a line; integers of any length and NaN are as Python writes them."""
    return json.dumps(value, ensure_ascii=True).encode()


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three of their bits flipped, replaced by others, cut or repeated."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(made))
        choice = rng.random()
        if choice < 0.7:
            made[place] ^= 1 << rng.randrange(8)
        elif choice < 0.85:
            made[place] = rng.randrange(256)
        elif choice < 0.92:
            del made[place : place + rng.randint(1, 8)]
        else:
            made[place:place] = made[place : place + rng.randint(1, 8)]
        if not made:
            return b""
    return bytes(made)
