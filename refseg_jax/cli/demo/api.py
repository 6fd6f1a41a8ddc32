"""The JSON API: `POST /v1/predictions` and `GET /v1/health`.

A request is JSON, `{"image": BASE64, "expressions": ["the red car"]}`, or a form (`multipart/form-data`)
with a file `image` and a field `expressions` for each expression. Both may have `name` (of the picture,
for the lines), `model` (by default the first), `thresholds` (`{"mask": 0.5, "presence": 0.5}`, in a form
as text) and `maps` (true for soft maps).

The answer has `predictions`, one line of `predictions.jsonl` for each expression, `model`, and `notes`,
what had to be guessed of the picture. An error is `{"error": "LINE"}`: 400 for a faulty request, 404 for
an unknown model, 408 for one that does not arrive, 413 for a limit of size, 415 for another type of
content, 422 for a picture that cannot be used, 503 while too many requests wait.
"""

import asyncio
import base64
import binascii
import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future
from typing import Any, NoReturn

from fastapi import FastAPI, Request  # pyright: ignore[reportMissingImports]
from fastapi.responses import JSONResponse  # pyright: ignore[reportMissingImports]
from starlette.datastructures import UploadFile  # pyright: ignore[reportMissingImports]
from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]
from starlette.formparsers import MultiPartException, MultiPartParser  # pyright: ignore[reportMissingImports]
from starlette.requests import ClientDisconnect  # pyright: ignore[reportMissingImports]

from refseg_jax.cli.demo.answers import judged
from refseg_jax.cli.demo.batching import BusyError, Question, Worker
from refseg_jax.cli.demo.limits import Limits, TooLargeError, is_text
from refseg_jax.cli.demo.models import Model
from refseg_jax.cli.pairs import line_of
from refseg_jax.errors import UserError, escaped, shown
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.images.decoding import ImageError
from refseg_jax.prediction.many import Answer

#: Names of what a request may have.
_FIELDS = ("image", "expressions", "name", "model", "thresholds", "maps")
_NAME = "image"
#: Seconds in which a request has to arrive.
_ARRIVES = 60.0


class _RefusedError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A request that was read and is sound.

    Attributes:
        thresholds: those of the request, `None` for the model's.
    """

    model: str
    picture: bytes
    expressions: tuple[str, ...]
    name: str
    thresholds: Thresholds | None
    maps: bool

    def made(self, answer: Answer) -> dict[str, Any]:
        """The JSON object of an answer; raises an `ImageError` of a picture that cannot be used."""
        lines = []
        for k, (text, one) in enumerate(zip(self.expressions, answer, strict=True)):
            decided = one if self.thresholds is None else judged(one, self.thresholds)
            line = line_of(f"{self.name}#{k}", self.name, text, decided)
            if not self.maps:
                line.pop("map", None)
            lines.append(line)
        return {"model": self.model, "predictions": lines, "notes": list(answer.notes)}


class Api:
    """Answers the requests of a server.

    Attributes:
        reading: requests that are read or wait for their answers now.
    """

    def __init__(self, models: Mapping[str, Model], worker: Worker, limits: Limits) -> None:
        self._models, self._worker, self._limits = models, worker, limits
        self.reading = 0

    def add_to(self, app: FastAPI) -> None:
        """Adds the two paths to an app."""
        app.add_api_route("/v1/predictions", self.predictions, methods=["POST"])
        app.add_api_route("/v1/health", self.health, methods=["GET"])

    async def health(self) -> JSONResponse:
        """What serves, within which limits, and how much waits."""
        return JSONResponse(
            {
                "status": "ok",
                "models": [
                    {
                        "name": model.name,
                        "thresholds": model.predictor.thresholds.as_json(),
                        "presence_head": model.head,
                    }
                    for model in self._models.values()
                ],
                "limits": dataclasses.asdict(self._limits),
                "waiting": self._worker.waiting,
                "most_waiting": self._worker.most,
                "batches": self._worker.batches,
                "jobs": self._worker.jobs,
            }
        )

    async def predictions(self, request: Request) -> JSONResponse:
        """Answers a request; see the module."""
        # Before its body is read, which takes memory.
        if self.reading >= self._limits.waiting:
            return _refusal(503, f"{self.reading} requests wait already; try again in a while")
        self.reading += 1
        try:
            return JSONResponse(await self._answer(request))
        except _RefusedError as refused:
            return _refusal(refused.status, str(refused))
        except BusyError as error:
            return _refusal(503, str(error))
        except TooLargeError as error:
            return _refusal(413, str(error))
        except ImageError as error:
            return _refusal(422, str(error))
        except UserError as error:
            return _refusal(400, str(error))
        except HTTPException as error:
            return _refusal(error.status_code, error.detail)
        finally:
            self.reading -= 1

    async def _answer(self, request: Request) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_ARRIVES):
                fields = await self._fields(request)
        except ClientDisconnect:
            raise _RefusedError(400, "the request was broken off") from None
        except TimeoutError:
            raise _RefusedError(408, f"the request did not arrive in {_ARRIVES:.0f} s") from None
        asked = self._checked(fields)
        maps = asked.maps or asked.thresholds is not None
        future: Future[dict[str, Any]] = self._worker.ask(
            Question(asked.model, asked.picture, asked.expressions, maps, asked.made)
        )
        return await asyncio.wrap_future(future)

    async def _fields(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return _json_fields(await request.body())
        if kind == "multipart/form-data":
            return await self._form_fields(request)
        raise _RefusedError(415, "content-type: give application/json or multipart/form-data")

    async def _form_fields(self, request: Request) -> dict[str, Any]:
        body = await request.body()

        async def whole() -> AsyncGenerator[bytes, None]:
            yield body

        parser = MultiPartParser(
            request.headers,
            whole(),
            max_files=1,
            max_fields=self._limits.expressions + len(_FIELDS),
        )
        # In memory, where the body is already.
        parser.spool_max_size = len(body) + 1
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, ValueError) as error:
            _refuse(f"the form cannot be read: {getattr(error, 'message', error)}")
        fields: dict[str, Any] = {}
        for name in form:
            values = form.getlist(name)
            fields[name] = values if name == "expressions" else values[-1]
        picture: Any = fields.get("image")
        if isinstance(picture, UploadFile):
            fields["image"] = await picture.read()
            fields.setdefault("name", picture.filename or _NAME)
        if "maps" in fields:
            fields["maps"] = {"true": True, "false": False}.get(fields["maps"], fields["maps"])
        if "thresholds" in fields:
            fields["thresholds"] = _parsed(fields["thresholds"], "thresholds")
        return fields

    def _checked(self, fields: Mapping[str, Any]) -> _Asked:
        if odd := [name for name in fields if name not in _FIELDS]:
            _refuse(f"{shown(odd[0])}: unknown field; give {', '.join(_FIELDS)}")
        name, model = fields.get("name", _NAME), fields.get("model", next(iter(self._models)))
        if not isinstance(name, str) or not 0 < len(name) <= 255 or not is_text(name):
            _refuse("name: give a text of up to 255 characters")
        if not isinstance(model, str) or model not in self._models:
            known = ", ".join(self._models)
            raise _RefusedError(404, f"model: there is no {shown(model)}; give one of {known}")
        maps = fields.get("maps", False)
        if not isinstance(maps, bool):
            _refuse("maps: give true or false")
        picture = fields.get("image")
        if not isinstance(picture, bytes) or not picture:
            _refuse("image: missing; give a picture, in JSON as base64")
        self._limits.check_picture(picture, name)
        texts = fields.get("expressions")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            _refuse("expressions: give a list of texts")
        self._limits.check_expressions(texts)
        usual = self._models[model].predictor.thresholds
        thresholds = _thresholds(fields["thresholds"], usual) if "thresholds" in fields else None
        return _Asked(model, picture, tuple(texts), name, thresholds, maps)


def _json_fields(body: bytes) -> dict[str, Any]:
    fields = _parsed(body, "the body")
    if not isinstance(fields, dict):
        _refuse("the body: give a JSON object")
    if isinstance(fields.get("image"), str):
        try:
            fields["image"] = base64.b64decode(fields["image"], validate=True)
        except (binascii.Error, ValueError):
            _refuse("image: is no base64")
    return fields


def _parsed(text: Any, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        _refuse(f"{what}: is no JSON")


def _thresholds(given: Any, usual: Thresholds) -> Thresholds:
    names = ("mask", "presence")
    if not isinstance(given, dict) or not given or not {*given} <= {*names}:
        _refuse('thresholds: give {"mask": P, "presence": P}, or one of them')
    values = {name: given.get(name, getattr(usual, name)) for name in names}
    if any(isinstance(value, bool) for value in values.values()):
        _refuse("thresholds: give numbers between 0 and 1")
    return Thresholds(**values)


def _refuse(line: str) -> NoReturn:
    raise _RefusedError(400, line)


def _refusal(status: int, line: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": escaped(line)}, status, headers)


class BodyLimit:
    """Middleware that reads no body beyond a limit, whatever its length is said to be."""

    def __init__(self, app: Any, most: Any) -> None:
        """Wraps an app.

        Args:
            app: of ASGI.
            most: path -> bytes.
        """
        self._app, self._most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, read = self._most(scope["path"]), 0
        line = f"the request has more than the allowed {most:,} bytes; scale the picture down"
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > most:
            await _refusal(413, line)(scope, receive, send)
            return

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, line)
            return message

        await self._app(scope, counted, send)
