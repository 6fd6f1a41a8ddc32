"""What the tests of the demo ask a server, and by which means."""

import base64
import http.client
import io
import json
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from PIL import Image

from refseg_jax.cli.demo.limits import Limits
from refseg_jax.prediction.predictor import Predictor

ROOT = Path(__file__).resolve().parents[4]

#: Small, so that requests beyond them are small, too. 32 clients fit.
LIMITS = Limits(megabytes=1, pixels=10_000, expressions=4, waiting=32)
#: Of masks and presence, of the model.
THRESHOLDS = (0.55, 0.5)
FLAGS = (
    "--port=0",
    f"--max_megabytes={LIMITS.megabytes}",
    f"--max_pixels={LIMITS.pixels}",
    f"--max_expressions={LIMITS.expressions}",
    f"--max_waiting={LIMITS.waiting}",
)


class Served(NamedTuple):
    """A server, and what it answers with."""

    address: str
    predictor: Predictor

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """Status and JSON of a request; `_` in the names of headers is `-`."""
        client = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method, path, body, named)
        answer = client.getresponse()
        try:
            text = answer.read()
            if "json" in (answer.headers.get("content-type") or ""):
                return answer.status, json.loads(text)
            return answer.status, {"text": text.decode(errors="replace")}
        finally:
            client.close()

    def read(self, path: str, until: str = "") -> str:
        """The text at a path; of one that never ends, its beginning with the line that has `until`."""
        with urlopen(self.address + path, timeout=60) as answer:
            if not until:
                return answer.read().decode()
            text = ""
            for line in answer:
                text += line.decode()
                if until in text:
                    break
            return text

    def ask_page(self, path: str, words: Any, model: str) -> dict[str, Any]:
        """Asks as a browser does: the event that ends it, or the error by which it is refused.

        Args:
            path: of a picture, on the server.
            words: the expressions.
            model: its name.
        """
        config = json.loads(self.read("/config"))
        (ask,) = [event for event in config["dependencies"] if len(event["inputs"]) == 6]
        told = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        data = [told, words, model, *THRESHOLDS, None]
        call = json.dumps({"data": data, "fn_index": ask["id"], "session_hash": "abc"}).encode()
        join = "/gradio_api/queue/join"
        status, said = self.send("POST", join, call, content_type="application/json")
        if status != 200:
            return {"success": False, **said}
        events = self.read("/gradio_api/queue/data?session_hash=abc", until="process_completed")
        return json.loads(events.strip().splitlines()[-1].removeprefix("data: "))

    def ask(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        """A request of JSON; bytes become base64."""
        given = {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in fields.items()
        }
        body = json.dumps(given).encode()
        return self.send("POST", "/v1/predictions", body, content_type="application/json")


def picture(seed: int = 2, height: int = 40, width: int = 30) -> bytes:
    """A PNG; of seed 2, the model finds "the red box", and says no to "both boxes"."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "PNG")
    return file.getvalue()


def form(
    picture: bytes, fields: list[tuple[str, str]], *, field: str = "image"
) -> tuple[bytes, str]:
    """The body of a form, and its type."""
    parts = [f'form-data; name="{key}"\r\n\r\n{value}'.encode() for key, value in fields]
    head = f'form-data; name="{field}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    parts.append(head.encode() + picture)
    body = b"".join(b"--xyz\r\nContent-Disposition: " + part + b"\r\n" for part in parts)
    return body + b"--xyz--\r\n", "multipart/form-data; boundary=xyz"
