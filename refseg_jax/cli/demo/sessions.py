"""What the page keeps for each of its users, in bounded memory."""

import secrets
import threading
from collections import OrderedDict

import jax

from refseg_jax.cli.demo.answers import Asked


class Sessions:
    """Keeps the last picture and answers of each user.

    A user is known by a token that never leaves the server: Gradio keeps it in the state of the
    browser's session. If all together are too large, those of who asked longest ago are forgotten, and
    asked anew when they are needed.
    """

    def __init__(self, most: int) -> None:
        """Starts with no user.

        Args:
            most: bytes of all users together.
        """
        self._most = most
        self._kept: OrderedDict[str, Asked] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """What is kept now."""
        return sum(self._sizes.values())

    def get(self, token: str | None) -> Asked | None:
        """What was kept for a user; `None` if there is nothing, or if it had to go."""
        with self._lock:
            if token is None or token not in self._kept:
                return None
            self._kept.move_to_end(token)
            return self._kept[token]

    def keep(self, token: str | None, asked: Asked) -> str:
        """Keeps what a user asked last, in place of what was asked before.

        Args:
            token: of the user; `None` for a new one.
            asked: is kept.

        Returns:
            The token.
        """
        token = token or secrets.token_urlsafe(16)
        with self._lock:
            self._kept[token], self._sizes[token] = asked, size_of(asked)
            self._kept.move_to_end(token)
            # The last one stays, so that there is something to show.
            while self.size > self._most and len(self._kept) > 1:
                old, _ = self._kept.popitem(last=False)
                del self._sizes[old]
        return token

    def drop(self, token: str | None) -> None:
        """Forgets a user."""
        with self._lock:
            if token is not None and self._kept.pop(token, None) is not None:
                del self._sizes[token]


def size_of(asked: Asked) -> int:
    """Bytes that are kept of a picture: its pixels, features, masks and probabilities."""
    features = jax.tree.leaves(asked.encoded.features)
    arrays = [asked.pixels, *features]
    for one in asked.found.values():
        arrays += [one.mask, one.uncleared, one.soft_map]
    # A mask that was not cleared is there once.
    return sum(array.nbytes for array in {id(x): x for x in arrays if x is not None}.values())
