"""The app of the demo: the JSON API, and the page beside it."""

import socket
from collections.abc import Mapping

import uvicorn  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

from refseg_jax.cli.demo.api import Api, BodyLimit
from refseg_jax.cli.demo.app import mounted, page_of
from refseg_jax.cli.demo.batching import Worker
from refseg_jax.cli.demo.limits import Limits
from refseg_jax.cli.demo.models import Model
from refseg_jax.cli.demo.uploads import UploadsOnly
from refseg_jax.errors import UserError

#: Seconds that open requests have after Ctrl-C.
_GRACE = 3


def make_app(models: Mapping[str, Model], worker: Worker, limits: Limits) -> FastAPI:
    """The app of one process: `/v1/...` is the API, `/` the page.

    Args:
        models: name -> model.
        worker: owns them.
        limits: of every request.
    """
    # The pages of FastAPI load scripts from elsewhere.
    app = FastAPI(title="refseg_jax", docs_url=None, redoc_url=None)
    Api(models, worker, limits).add_to(app)
    app = mounted(app, page_of(models, worker, limits), limits)
    group = limits.pictures * limits.file_bytes + 2**20

    def most(path: str) -> int:
        # The page sends the pictures of a group at once.
        return group if path.endswith("/upload") else limits.body_bytes

    app.add_middleware(UploadsOnly)
    # Around the other one, which reads bodies.
    app.add_middleware(BodyLimit, most=most)
    return app


def listening(host: str, port: int) -> socket.socket:
    """A socket for the server; port 0 takes a free one.

    Raises:
        UserError: the address is in use, or none of this machine.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port={port}: give a number from 0 (a free one) to {2**16 - 1}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # Python adds the address, which is named here.
        reason = str(error.strerror or error).partition(" (while")[0]
        raise UserError(
            f"--host={host} --port={port}: {reason}; give another --port, or 0 for a free one"
        ) from None


def address_of(listener: socket.socket) -> str:
    """The address of a server on this socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server of the app; `run(sockets=[...])` starts it."""
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE, ws="none")
    )
