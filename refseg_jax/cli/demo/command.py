"""Serves models to people: a web page and a JSON API, on this machine alone unless --host says else.

    python -m tools.demo --checkpoint=runs/scenes_unires [--checkpoint=exported] [--port=7860]

The page takes a picture and expressions, one a line, and draws the region of each, or says that nothing
matches. Sliders move the thresholds without asking the model again. Masks and `predictions.jsonl` come
as a zip. A second tab asks which of several pictures show something.

`POST /v1/predictions` takes a picture and expressions and returns the lines of `predictions.jsonl`;
`GET /v1/health` lists the models and the limits. Requests that come together are answered in batches.

The server opens no file that a request names. `--host=0.0.0.0` lets everybody in who reaches this
machine; there is no password. It needs `pip install 'refseg_jax[demo]'`. docs/demo.md has the rest.
"""

import argparse
import importlib.util
from collections.abc import Sequence

from refseg_jax.cli.command_line import command_parser, ended, expanded
from refseg_jax.cli.demo.limits import Limits
from refseg_jax.cli.predictors import parse_thresholds
from refseg_jax.cli.signals import leave
from refseg_jax.errors import UserError, escaped


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    usual = Limits()
    parser = command_parser("tools.demo", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        action="append",
        required=True,
        help="a run's workdir, one checkpoint, an export, or hf://OWNER/NAME; may be given again",
    )
    parser.add_argument(
        "--thresholds",
        default="config",
        metavar="config|calibrated|MASK[,PRESENCE]",
        help="where the sliders start, and by what the API decides",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: whoever reaches this machine")
    parser.add_argument("--port", type=int, default=7860, help="0: a free one")
    parser.add_argument(
        "--max_megabytes", type=int, default=usual.megabytes, help="of the file of a picture"
    )
    parser.add_argument(
        "--max_pixels", type=int, default=usual.pixels, help="height times width of a picture"
    )
    parser.add_argument(
        "--max_expressions", type=int, default=usual.expressions, help="of a request"
    )
    parser.add_argument(
        "--max_waiting", type=int, default=usual.waiting, help="requests at a time; 503 beyond"
    )
    parser.add_argument(
        "--cache_megabytes",
        type=int,
        default=usual.cached_megabytes,
        help="kept for the next questions of all users together",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Serves until the process is stopped.

    Raises:
        UserError: a model cannot be opened, the address is in use, a limit is less than 1, or the
            extra `demo` is missing.
    """
    limits = Limits(
        megabytes=options.max_megabytes,
        pixels=options.max_pixels,
        expressions=options.max_expressions,
        waiting=options.max_waiting,
        cached_megabytes=options.cache_megabytes,
    )
    missing = [name for name in ("gradio", "fastapi", "uvicorn") if not _installed(name)]
    if missing:
        raise UserError(f"{missing[0]} is not installed; run pip install 'refseg_jax[demo]'")
    # Late: --help needs no web server.
    from refseg_jax.cli.demo import batching, models, server

    # Before the models, whose loading may take a while.
    with server.listening(options.host, options.port) as listener:
        opened = models.open_models(
            options.checkpoint, parse_thresholds(options.thresholds), limits.pixels
        )
        predictors = {name: model.predictor for name, model in opened.items()}
        worker = batching.Worker(predictors, limits.waiting)
        try:
            app = server.make_app(opened, worker, limits)
            address = server.address_of(listener)
            print(f"{address}: {escaped(', '.join(opened))}; API: {address}/v1/health", flush=True)
            server.make_server(app).run(sockets=[listener])
        finally:
            worker.close()
    return 0


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    return ended(lambda: run(options))


if __name__ == "__main__":
    leave(main())
