"""How `refseg_jax.layers.flash_attention` cuts its arrays into blocks that fit on a TPU's chip."""

import dataclasses
import functools
import math

import jax

from refseg_jax.layers import target

#: Lanes of a TPU's vector register.
LANES = 128

#: Sublanes of a register of bf16; f32 has half as many.
SUBLANES = 16

#: Queries of a block, where one does not take all of them.
QUERY_BLOCKS = (512, 384, 256)

#: Most tokens (queries and keys) of a block of several short rows. Few blocks are good, because each
#: takes time to begin.
TOKENS = 2048

#: Bytes that a kernel may ask for, and the share of it for blocks and scores, since the compiler takes
#: some itself. The first TPUs have little.
LIMIT, SHARE = 64 << 20, 0.8
_SMALL_LIMIT, _SMALL = 16 << 20, ("TPU v2", "TPU v3", "TPU v4")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the kernel cuts its arrays into blocks.

    Attributes:
        heads: number of heads of a block.
        width: channels of a head.
        rows: rows of a block.
        queries: queries of a block.
        keys: number of keys, padded to whole registers.
        true_queries, true_keys: numbers of queries and keys.
        groups: masks in `visible`; 0 without any.
        biased: whether there is a bias.
        itemsize: bytes of an element of query, key and value.
        limit: bytes that the kernel may take.
    """

    heads: int
    width: int
    rows: int
    queries: int
    keys: int
    true_queries: int
    true_keys: int
    groups: int
    biased: bool
    itemsize: int
    limit: int

    @property
    def lanes(self) -> int:
        """Channels of a block."""
        return self.heads * self.width

    @property
    def query_blocks(self) -> int:
        """Number of blocks of a row's queries."""
        return -(-self.true_queries // self.queries)

    @property
    def memory(self) -> int:
        """Bytes that the backward pass takes: four maps of scores, all blocks twice, and sums."""
        maps = 4 * 4 * self.queries * self.keys
        tokens = self.rows * (3 * self.queries + 4 * self.keys)
        sums = 8 * self.keys * self.lanes if self.query_blocks > 1 else 0
        masks = 2 * self.queries * self.keys * self.rows if self.groups else 0
        biases = 2 * 2 * 4 * self.heads * self.queries * self.keys if self.biased else 0
        return maps + 2 * self.itemsize * tokens * self.lanes + sums + masks + biases

    @property
    def fits(self) -> bool:
        """Whether a TPU's chip has room for the backward pass."""
        return self.memory <= SHARE * self.limit


def plan(
    query: jax.Array | jax.ShapeDtypeStruct,
    key: jax.Array,
    visible: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> Plan | None:
    """The blocks for a device's share of the arrays of `attention`; `None` where they do not fit.

    A row of scores has to fit on the chip, and a bias needs all queries in one block. Of key, visible
    and bias, only the number of keys, the number of masks and the presence matter.
    """
    rows, queries, heads, width = query.shape
    keys = key.shape[1]
    together = _heads_of_a_block(heads, width)
    sizes = [_up(queries, SUBLANES)] if queries <= QUERY_BLOCKS[0] else []
    if bias is None:
        smaller = [block for block in QUERY_BLOCKS if block < queries]
        sizes += [*sorted(smaller, key=lambda block: _up(queries, block)), LANES]
    groups = 0 if visible is None else visible.shape[0]
    whole = functools.partial(
        Plan,
        together,
        width,
        keys=_up(keys, LANES),
        true_queries=queries,
        true_keys=keys,
        biased=bias is not None,
        itemsize=query.dtype.itemsize,
        limit=_SMALL_LIMIT if target.current().kind in _SMALL else LIMIT,
    )
    for size in sizes:
        found = whole(rows=1, queries=size, groups=groups)
        if found.fits:
            many = _rows_of_a_block(found, rows) if found.query_blocks == 1 else 1
            return dataclasses.replace(found, rows=many)
    return None


def _heads_of_a_block(heads: int, width: int) -> int:
    """Heads whose channels fill whole registers; all heads where there is no such number."""
    if width % LANES == 0:
        return 1
    together = LANES // math.gcd(width, LANES)
    return together if heads % together == 0 else heads


def _rows_of_a_block(one: Plan, rows: int) -> int:
    """The most rows that divide those of the batch and of the masks and are few enough."""
    common = math.gcd(rows, one.groups) if one.groups > 1 else rows
    fits = lambda n: n * (one.queries + one.keys) <= TOKENS  # noqa: E731
    small = lambda n: dataclasses.replace(one, rows=n).fits  # noqa: E731
    return max(n for n in range(1, 17) if n == 1 or (common % n == 0 and fits(n) and small(n)))


def _up(length: int, step: int) -> int:
    return -(-length // step) * step
