"""GRSer's heatmap hierarchizer (Wu et al. 2023, section 3.3): images ranked by how far to trust them.

The images of a row are experts, each with a prototype. Their order decides the channels in which their
heatmaps reach the mask predictor (equation 4).

Equal sums of ranks are common (two ranks of N images each), and the paper does not state how to break
them. Here the image that comes first on the axis N wins. The pipeline and the predictor lay the images
of a group out sorted by name, so that the order in which a group is given changes no answer. Apart from
ties, the ranks follow the images through any permutation of the axis.
"""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from refseg_jax.naming import unknown

#: What ranks the experts: both distances, that to L or to L_anti alone, or chance (Table 4).
Rank: TypeAlias = Literal["both", "positive", "negative", "random"]

#: Which rank a channel of the predictor shows, see `ranks_of_channels`.
Channels: TypeAlias = Literal["spread", "last"]


def check_rank(rank: str) -> None:
    """Checks the name of a ranking.

    Raises:
        ValueError: it is unknown; the message names the nearest.
    """
    if rank not in get_args(Rank):
        raise ValueError(unknown("rank", rank, get_args(Rank)))


def total_ranks(
    positive: jax.Array,
    negative: jax.Array,
    valid: jax.Array,
    rank: Rank,
    key: jax.Array | None = None,
) -> jax.Array:
    """The rank in equation 4 of every expert, the most trusted first.

    A rank counts the valid experts that are better, so that equal distances have equal ranks.

    Args:
        positive: f32 `[B, I, K]`, distance of each prototype to L (s^pos; the smallest is the best).
        negative: f32 `[B, I, K]`, distance to L_anti (s^neg; the largest is the best).
        valid: bool `[B, I, K]`, false for images that are no experts.
        rank: `both`: R^pos + R^neg. `positive`, `negative`: one of the two. `random`: an order by
            chance, without regard to the distances.
        key: random key for `random`. Without one, its order is the same in every call, which inference
            needs.

    Returns:
        f32 `[B, I, K]`; infinite for experts that are not valid.
    """
    if rank == "random":
        fixed = jax.random.uniform(jax.random.key(0), positive.shape[1:2])[:, None]
        scores = jax.random.uniform(key, positive.shape) if key is not None else fixed
        return jnp.where(valid, jnp.broadcast_to(scores, positive.shape), jnp.inf)
    used = {"both": (positive, -negative), "positive": (positive,), "negative": (-negative,)}
    # [B, I, J, K]: whether J is an expert, and better than I.
    better = jnp.stack([(x[:, None] < x[:, :, None]) & valid[:, None] for x in used[rank]])
    return jnp.where(valid, better.sum((0, 3), dtype=jnp.float32), jnp.inf)


def expert_order(total: jax.Array) -> jax.Array:
    """The experts in the order of their ranks; of equal ranks, the first on the axis comes first.

    Args:
        total: f32 `[B, I, K]`, from `total_ranks`.

    Returns:
        i32 `[B, I, K]`: entry r is the index on the axis of the expert at place r, counted from 0.
        Experts that are not valid come last.
    """
    # Counted, not sorted: ONNX cannot sort an axis of any length.
    index = jax.lax.cumsum(jnp.ones_like(total, jnp.int32), axis=1) - 1
    ahead, behind = total[:, None], total[:, :, None]
    earlier = index[:, None] < index[:, :, None]
    place = ((ahead < behind) | ((ahead == behind) & earlier)).sum(2, dtype=jnp.int32)
    there = place[:, :, None] == index[:, None]
    return jnp.where(there, index[:, :, None], 0).sum(1, dtype=jnp.int32)


def ranks_of_channels(valid: jax.Array, channels: int, kind: Channels) -> jax.Array:
    """Which place in the order each channel of the mask predictor shows.

    The predictor has a fixed number of channels, and a row has any number v of valid experts. The paper
    fills the last group of a set in a way that it does not state.

    Args:
        valid: bool `[B, I, K]`.
        channels: number G of channels.
        kind: `spread`: channel g shows place `floor(g v / G)`. So the first channel always shows the
            best expert, the last one nearly the worst, and half of the channels show the better half,
            whatever v is: half of a training group are positive, so a channel says which share of the
            experts is at least as good. `last`: places 0 to v - 1, then the worst again; a group of two
            has one good channel of eight, which training never shows. Of more than G experts, `spread`
            shows G of all, `last` the G best.

    Returns:
        i32 `[B, G, K]` in 0..I-1; 0 where no expert is valid.
    """
    count = jnp.sum(valid, 1, dtype=jnp.int32, keepdims=True)
    channel = jnp.arange(channels, dtype=jnp.int32)[:, None] + jnp.zeros_like(count)
    place = channel
    if kind == "spread":
        place = jax.lax.div(channel * count, jnp.full_like(channel, channels))
    return jnp.clip(place, 0, jnp.maximum(count - 1, 0))


def rearrange(prototypes: jax.Array, order: jax.Array, places: jax.Array) -> jax.Array:
    """The prototypes in the order of the predictor's channels.

    Equation 4 rearranges the heatmaps. A heatmap depends on one prototype alone, and the order is the
    same for all images of a row, so rearranging the prototypes before equation 3 does the same.

    Args:
        prototypes: f32 `[B, I, K, C]`.
        order: i32 `[B, I, K]`, from `expert_order`.
        places: i32 `[B, G, K]`, from `ranks_of_channels`.

    Returns:
        f32 `[B, G, K, C]`.
    """
    chosen = jnp.take_along_axis(order, places, 1)
    return jnp.take_along_axis(prototypes, chosen[..., None], 1)
