"""Which files the page may read: those that Gradio has stored for a browser, and no other.

Gradio copies whatever file a request names into its cache, where anybody can fetch it, unless it takes
itself for launched: an app that another one mounts does not. It also fetches addresses of the web that a
request names. So requests are read before it sees them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi.responses import JSONResponse  # pyright: ignore[reportMissingImports]
from gradio.utils import get_upload_folder  # pyright: ignore[reportMissingImports]


def is_upload(path: object) -> bool:
    """Whether a path is that of a file in Gradio's folder; links are followed."""
    if not isinstance(path, str) or "\0" in path:
        return False
    try:
        found = Path(path).resolve()
        return found.is_relative_to(Path(get_upload_folder()).resolve()) and found.is_file()
    except (OSError, RuntimeError):
        return False


class UploadsOnly:
    """Middleware that refuses a request of the page which names any other file."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        path = scope["path"] if scope["type"] == "http" else ""
        # The API reads no files, and what is uploaded is no JSON.
        if scope.get("method") != "POST" or path.startswith("/v1/") or path.endswith("/upload"):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            named = list(_paths(json.loads(body or b"null")))
        except (ValueError, RecursionError):
            await _refused("the body is no JSON")(scope, receive, send)
            return
        if not all(map(is_upload, named)):
            await _refused("a file was not uploaded here")(scope, receive, send)
            return
        sent = False

        async def again() -> Any:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


def _refused(line: str) -> JSONResponse:
    return JSONResponse({"error": line}, 400)


def _paths(value: Any) -> Iterator[Any]:
    """What a JSON value names as paths of files, wherever in it."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        for one in value.values():
            yield from _paths(one)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)
