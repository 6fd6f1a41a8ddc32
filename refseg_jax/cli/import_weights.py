"""Turns published weights into a checkpoint folder of this project.

    python -m tools.import_weights --format=hf_clip --source=DIR_OR_FILE_OR_HUB_NAME --output=CKPT

A run starts from the folder with `--config.init.clip=CKPT`. It could also start from the source itself,
but the folder has digests, and using it needs neither the source nor the network. The model has the
sizes of the source. With `--preset=B/16` they must be those of the preset, and the position embedding
is resized to its image size. Formats: openai_clip, hf_clip, openclip, and for single towers hf_swin,
ms_swin, hf_bert (see docs/weights.md).

    python -m tools.import_weights --format=rela --source=FILE --output=CKPT

This writes the released ReLA as a whole model. `main.py --mode=eval` takes it with
`--config.init.checkpoint=CKPT`, tools.predict and tools.export with `--checkpoint=CKPT`. It reads words
with BERT's tokenizer: `--tokenizer=FILE` names a downloaded tokenizer.json. Without it, the hub is asked
for bert-base-uncased whenever the model is used.

    python -m tools.import_weights --format=unilseg --source=FILE --output=CKPT

This writes the released UniLSeg in the same way. It reads words with CLIP's tokenizer, which needs no
file.
"""

import argparse
import dataclasses
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from refseg_jax.checkpoints import folder as checkpoint_folder
from refseg_jax.checkpoints.checkpointer import Checkpointer
from refseg_jax.cli.command_line import (
    Result,
    add_json_flag,
    command_parser,
    ended,
    expanded,
    path,
)
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError, escaped
from refseg_jax.models.forward import Forward
from refseg_jax.models.unires import UniRES
from refseg_jax.models.unires_config import PRESETS, UniRESConfig, unires_config
from refseg_jax.sharding import MeshConfig, abstract_params, make_mesh
from refseg_jax.text.tokenizers import check_tokenizer
from refseg_jax.weights import clip, rela, towers, unilseg
from refseg_jax.weights.clip_files import open_clip
from refseg_jax.weights.loader import Plan, load
from refseg_jax.weights.opened import Opened


class Request(NamedTuple):
    """The values of the command line's flags."""

    format: str
    source: str
    sha256: str
    preset: str = ""
    tokenizer: str = ""


class Imported(NamedTuple):
    """Weights that were read from a source.

    Attributes:
        params: dotted path -> parameter.
        plan: which entries were read, and which entries and parameters were left out.
        record: config of the checkpoint: its origin, and facts that loading it must check.
    """

    params: dict[str, jax.Array]
    plan: Plan
    record: dict[str, Any]


def _import_clip(request: Request) -> Imported:
    _only_of("rela", tokenizer=request.tokenizer)
    found = open_clip(request.source, format=request.format, sha256=request.sha256)
    name = found.weights.name
    known = {"activation": found.facts.activation, "eos_id": found.facts.eos_id}
    if request.preset:
        config = unires_config({"preset": request.preset, **known})
    else:
        own = clip.sizes(found.table, found.weights.shapes)
        heads = {"vision_heads": found.facts.vision_heads, "text_heads": found.facts.text_heads}
        try:
            config = UniRESConfig(**own, **heads, **known, head="linear", mask_stride=1)
        except ValueError as error:
            raise UserError(
                f"{name}: {error}; take the file, and the JSON beside it, as it was published"
            ) from None
    clip.check(found.facts, config, name=name)
    forward: Forward[UniRES] = Forward(lambda rngs: UniRES(config, rngs=rngs))
    target = abstract_params(forward.shapes, make_mesh(MeshConfig()))
    plan = clip.plan_towers(found.table, found.weights.shapes, target, config, name=name)
    params = load(plan, found.weights, {path: target[path].sharding for path in plan.targets})
    facts = dataclasses.asdict(found.facts)
    origin = {"format": found.format, "source": request.source, "sha256": request.sha256}
    return Imported(params, plan, {"clip": {**origin, "facts": facts}})


def _import_tower(request: Request) -> Imported:
    _only_of("rela", tokenizer=request.tokenizer)
    _only_of("CLIP's formats", preset=request.preset)
    found = towers.open_tower(request.source, format=request.format, sha256=request.sha256)
    return _imported(request, found, "tower", {}, config=dataclasses.asdict(found.config))


def _import_rela(request: Request) -> Imported:
    _only_of("CLIP's formats", preset=request.preset)
    found = rela.open_rela(request.source, sha256=request.sha256)
    tokenizer = request.tokenizer or rela.TOKENIZER
    if request.tokenizer:
        here = Path(tokenizer)
        # Absolute, because the checkpoint may be used from another working directory.
        tokenizer = str(here.resolve()) if here.exists() else tokenizer
        check_tokenizer(tokenizer, rela.CONTEXT_LENGTH, found.config)
    return _imported(request, found, "rela", rela.run_config(found.config, tokenizer))


def _import_unilseg(request: Request) -> Imported:
    _only_of("rela", tokenizer=request.tokenizer)
    _only_of("CLIP's formats", preset=request.preset)
    found = unilseg.open_unilseg(request.source, sha256=request.sha256)
    return _imported(request, found, "unilseg", unilseg.run_config(found.config))


def _imported(
    request: Request, found: Opened[Any, Any], name: str, run: Mapping[str, Any], **facts: Any
) -> Imported:
    """Reads all of an opened file.

    Args:
        request: what was asked for.
        found: the file.
        name: entry of the record that has the origin of the weights.
        run: the rest of the record, a part of a run's config.
        facts: stands beside the origin.
    """
    target = abstract_params(found.forward.shapes, make_mesh(MeshConfig()))
    plan = found.plan(target)
    params = load(plan, found.weights, {path: target[path].sharding for path in plan.targets})
    origin = {"format": request.format, "source": request.source, "sha256": request.sha256}
    return Imported(params, plan, {**run, name: {**origin, **facts}})


def _only_of(formats: str, **flag: str) -> None:
    """Refuses a flag that only `formats` have."""
    for name, value in flag.items():
        if value:
            raise UserError(f"--{name}={value}: only of {formats}; leave it away")


#: Format -> reads the weights of a request.
FORMATS: Mapping[str, Callable[[Request], Imported]] = {
    "openai_clip": _import_clip,
    "hf_clip": _import_clip,
    "openclip": _import_clip,
    **dict.fromkeys(towers.FORMATS, _import_tower),
    "rela": _import_rela,
    "unilseg": _import_unilseg,
}

#: Formats of whole models.
WHOLE = ("rela", "unilseg")


def run(request: Request, output: Path) -> Imported:
    """Imports weights and writes the checkpoint, complete or not at all.

    Raises:
        UserError: the source is missing, damaged or does not fit the format or preset, or `output`
            holds a checkpoint or is not a folder.
    """
    there = next((path for path in (output, *output.parents) if path.exists()), output)
    if there.exists() and not there.is_dir():
        raise UserError(f"{output}: {there} is a file, not a folder; name another --output")
    if checkpoint_folder.steps(output / "checkpoints"):
        raise UserError(f"{output}: it holds a checkpoint already; name another --output")
    imported = FORMATS[request.format](request)
    checkpoints = output / "checkpoints"
    places = (*reversed(checkpoints.parents), checkpoints, checkpoints / "0")
    new = next((place for place in places if not place.exists()), None)
    try:
        _save(imported, checkpoints)
    except BaseException:
        # After an error, Ctrl-C or SIGTERM, no part of it stays.
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        raise
    return imported


def _save(imported: Imported, checkpoints: Path) -> None:
    checkpointer = Checkpointer(checkpoints, keep_latest=1)
    try:
        checkpointer.save(
            0,
            {"params": imported.params},
            data_state={},
            config=imported.record,
            metrics=None,
        )
    finally:
        checkpointer.close()


def summary(plan: Plan) -> str:
    """Text that says how many leaves were read, which were left out, and why."""
    lines = [f"{len(plan.reads)} entries read into {len(plan.targets)} parameters"]
    for what, left in (("unread", plan.unread), ("left to fresh weights", plan.unwritten)):
        reasons: dict[str, list[str]] = defaultdict(list)
        for leaf, reason in sorted(left.items()):
            reasons[reason].append(leaf)
        for reason, leaves in reasons.items():
            shown = ", ".join(leaves[:2]) + (", ..." if len(leaves) > 2 else "")
            lines.append(f"{what}: {len(leaves)} ({shown}): {reason}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = command_parser("tools.import_weights", __doc__)
    parser.add_argument("--format", required=True, choices=sorted(FORMATS))
    parser.add_argument(
        "--source", type=expanded, required=True, help="a file, its folder, or a hub name"
    )
    parser.add_argument("--output", type=path, required=True, help="the folder to write")
    parser.add_argument("--sha256", default="", help="of the weight file; checked where given")
    parser.add_argument("--preset", default="", choices=["", *PRESETS], help="sizes to insist on")
    parser.add_argument(
        "--tokenizer", type=expanded, default="", help="of rela: BERT's tokenizer.json, or a name"
    )
    add_json_flag(parser, "what was read and what was left out")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = vars(make_parser().parse_args(arguments))
    output, report = options.pop("output"), options.pop("json")
    return ended(lambda: _work(Request(**options), output), report=report)


def _work(request: Request, output: Path) -> Result:
    try:
        plan = run(request, output).plan
    except (UserError, OSError):
        raise
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None
    except (RuntimeError, TypeError, MemoryError) as error:
        # Python, numpy and JAX raise these for files with unexpected content.
        line = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise UserError(f"{request.source}: cannot be imported ({line}); try another") from None
    print(summary(plan))
    field = "checkpoint" if request.format in WHOLE else "clip"
    there = escaped(str(output))
    start = f" (a run starts from it by --config.init.{field}={there})"
    print(f"written: {there}{'' if request.format in towers.FORMATS else start}")
    return Result(
        {
            "output": output,
            "format": request.format,
            "source": request.source,
            "entries": len(plan.reads),
            "parameters": len(plan.targets),
            "unread": plan.unread,
            "unwritten": plan.unwritten,
        }
    )


if __name__ == "__main__":
    leave(main())
