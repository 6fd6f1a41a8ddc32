"""Settings of the pipeline."""

import dataclasses

from input_pipeline.rows import GROUPED, Sampling
from refseg_jax.errors import UserError
from refseg_jax.images import preprocess
from refseg_jax.images.decoding import MAX_PIXELS
from refseg_jax.text.anti import check_anti_length
from refseg_jax.text.tokenizers import AntiPrefix, build_tokenizer, check_length, prefix_id


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Which data to read, and how to make batches of it.

    Attributes:
        data_dir: folder of built datasets.
        dataset: name of the dataset, `<data_dir>/<dataset>`.
        split: name of its split.
        image_size: side of the network's square input in pixels.
        mask_stride: network pixels per mask cell.
        sampling: what a row is, see `input_pipeline.rows.Sampling`. An evaluation uses `expressions`
            instead of `image` and `referent`.
        pairs: K, expressions of a row; 1 for rows of groups.
        images: N, images of a row.
        negatives: of rows of groups, the share of images without a target that training draws, from 0
            (positives alone) to below 1, see `input_pipeline.rows.DrawImages`. GRSer: 0.5 (section 3.4).
        positives_only: whether an evaluation leaves out pairs without a target (GRSer's "RES setting").
        granularities: granularities of the expressions to use, out of `GRANULARITIES`.
        resize: `"letterbox"` or `"stretch"`, see `refseg_jax.images.preprocess`.
        mask_cells: `"mean"` or `"nearest"`, what a cell of a training target holds, see
            `refseg_jax.images.preprocess.prepare_mask`.
        context_length: L, tokens of a text, SOS and EOS included.
        tokenizer: name or file, see `refseg_jax.text.tokenizers.build_tokenizer`.
        anti_prefix: what stands before an anti-expression, see `refseg_jax.text.tokenizers.AntiPrefix`;
            `""`: batches have no `anti_text`.
        flip_probability: probability in [0, 1] that a training row is mirrored.
        part_prompt: words that ask for a part which the dataset names only by its category, with `{}`
            for "wheel of car". UniLSeg: "all {}" (Table 1).
        pseudo_labelled: whether models wrote the masks and the words. Training then hides patches of
            the images, see `transforms.HideAndSeek`.
        hide_probability: probability in [0, 1] that a patch is hidden. UniLSeg: 0.2 (section 3.3).
        hide_cells: patches along a side of the network's square. Not stated in UniLSeg's paper; 7 are
            patches of 32 pixels at 224, in the middle of the sizes (16 to 56) that the public code of
            Hide-and-Seek draws from.
        hide_colour: u8 RGB of a hidden patch. Not stated in UniLSeg's paper; as in Hide-and-Seek, the
            mean colour, with which evaluation's features have the same mean as training's.
        num_workers: processes that prepare batches; 0 prepares them in threads of this process. An
            evaluation uses at most as many as there are cores and batches.
        threads: threads of each of these processes.
        prefetch: batches that each of these processes keeps ready.
        max_wait: seconds to wait for a batch before the run stops with an error, because a worker or a
            thread hangs. It is far longer than a batch takes; `inf` waits for ever.
        canvas: `(Hc, Wc)` in pixels, at least the size of every image of an evaluation.
        shuffled_text: whether to evaluate with the words of other targets, see
            `transforms.ShuffleText`.
        max_pixels: images with more pixels are refused before they are decoded.
    """

    data_dir: str
    dataset: str
    split: str
    image_size: int
    mask_stride: int
    sampling: Sampling = "image"
    pairs: int = 8
    images: int = 1
    negatives: float = 0.5
    positives_only: bool = False
    granularities: tuple[str, ...] = ("object",)
    resize: preprocess.Resize = "letterbox"
    mask_cells: preprocess.MaskCells = "mean"
    context_length: int = 17
    tokenizer: str = "clip"
    anti_prefix: AntiPrefix = ""
    flip_probability: float = 0.0
    part_prompt: str = "{}"
    pseudo_labelled: bool = False
    hide_probability: float = 0.2
    hide_cells: int = 7
    hide_colour: tuple[int, int, int] = preprocess.BORDER
    num_workers: int = 0
    threads: int = 2
    prefetch: int = 4
    max_wait: float = 600.0
    canvas: tuple[int, int] = (640, 640)
    shuffled_text: bool = False
    max_pixels: int = MAX_PIXELS


def check_settings(config: PipelineConfig) -> None:
    """Checks the settings before a row is made, because a mistake in them would look like its damage.

    Raises:
        UserError: a setting cannot be met, or there is no such tokenizer.
    """
    tokenizer = build_tokenizer(config.tokenizer)
    check_length(config.context_length)
    if config.anti_prefix:
        check_anti_length(config.context_length)
        prefix_id(tokenizer, config.anti_prefix)
    preprocess.check_resize(config.resize)
    preprocess.check_mask_cells(config.mask_cells)
    if "{}" not in config.part_prompt:
        raise UserError(
            f"config.data.part_prompt={config.part_prompt!r}: put {{}} where the part stands, as in "
            "'all {}'"
        )
    _check_groups(config)
    _check_hiding(config)
    if not config.max_wait > 0:
        raise UserError(
            f"config.data.max_wait={config.max_wait:g}: give a positive number of seconds, or inf to "
            "wait for ever"
        )


def _check_groups(config: PipelineConfig) -> None:
    if config.images < 1:
        raise UserError(f"config.data.images={config.images}: give 1 or more images of a row")
    if not 0 <= config.negatives < 1:
        raise UserError(
            f"config.data.negatives={config.negatives:g}: give a share from 0 to below 1; without an "
            "image that has a target, no mask is learned"
        )
    if config.sampling not in GROUPED:
        return
    if config.pairs != 1:
        raise UserError(
            f"config.data.sampling={config.sampling}: the images of a row share one expression; set "
            f"config.data.pairs=1 (now {config.pairs}), and config.eval.pairs=1 for evaluations"
        )
    if config.shuffled_text:
        raise UserError(
            f"config.data.sampling={config.sampling}: the words of other targets are not those of a "
            "group; leave out evaluations with shuffled"
        )


def _check_hiding(config: PipelineConfig) -> None:
    if not 0 <= config.hide_probability <= 1:
        raise UserError(
            f"config.data.hide_probability={config.hide_probability:g}: give a share from 0 to 1"
        )
    if not 1 <= config.hide_cells <= config.image_size:
        raise UserError(
            f"config.data.hide_cells={config.hide_cells}: give the number of patches along a side, "
            f"from 1 to {config.image_size}"
        )
    colour = config.hide_colour
    if len(colour) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in colour):
        raise UserError(f"config.data.hide_colour={colour}: give red, green and blue from 0 to 255")
