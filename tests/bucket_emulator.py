"""A bucket on this machine, for the real clients: gcsfs, TensorStore and ArrayRecord.

gcp-storage-emulator answers; what the clients need is added to it: several connections at a time,
ranges that count from the end of a file, and generations of objects with conditions on them, by which
TensorStore sees that another writer was faster.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

pytest.importorskip("gcsfs", reason="buckets need gcsfs: pip install gcsfs")
pytest.importorskip(
    "gcp_storage_emulator",
    reason="an emulator stands in for Google: pip install gcp-storage-emulator",
)

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets as handlers
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

#: Environment variables by which gcsfs, TensorStore and ArrayRecord find another server.
ADDRESSES = (
    "STORAGE_EMULATOR_HOST",
    "TENSORSTORE_GCS_HTTP_URL",
    "CLOUD_STORAGE_EMULATOR_ENDPOINT",
)
#: The bucket that is there.
BUCKET = "bucket"

_FROM_THE_END = re.compile(r"bytes=-(\d+)")
_NAMED = re.compile(r"/b/([^/]+)/o(?:/(.+))?$")
_OBJECT = re.compile(r"/b/([^/?]+)/o/([^?]+)")


class _Storage(Storage):
    """The emulator's own is made for one connection at a time."""

    _lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def call(*args: Any, **fields: Any) -> Any:
            with _Storage._lock:
                return found(*args, **fields)

        return call


class _Handler(RequestHandler):
    _read = "0"
    #: Bucket -> status of the answer to every request about it.
    refused: ClassVar[dict[str, int]] = {"refused": 401, "forbidden": 403}

    def _answer(self, method: str) -> None:
        bucket = re.search(r"/b/([^/?]+)", self.path)
        if bucket and bucket[1] in self.refused:
            self.send_response(self.refused[bucket[1]])
            self.end_headers()
            return
        # ArrayRecord asks for the rest of a file and hangs up when it has a record.
        with suppress(ConnectionError):
            getattr(super(), method)()

    def _generation(self) -> str:
        """The generation of the object that is asked for; `"0"` if there is none."""
        url = urlsplit(self.path)
        bucket, name = _NAMED.search(url.path), parse_qs(url.query).get("name")
        if bucket is None:
            return "0"
        try:
            return self.storage.get_file_obj(
                bucket[1], name[0] if name else unquote(bucket[2] or "")
            )["generation"]
        except NotFound:
            return "0"

    def _unmet(self, now: str) -> bool:
        """Whether a condition of the request on the generation does not hold; it is answered then."""
        query = parse_qs(urlsplit(self.path).query)
        same, other = query.get("ifGenerationMatch", [now]), query.get("ifGenerationNotMatch", [])
        if same == [now] and other != [now]:
            return False
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(304 if self.command == "GET" and other == [now] else 412)
        self.send_header("content-length", "0")
        self.end_headers()
        return True

    def end_headers(self) -> None:
        if self.command == "GET" and self._read != "0":
            self.send_header("x-goog-generation", self._read)
        super().end_headers()

    def do_GET(self) -> None:
        last = _FROM_THE_END.fullmatch(self.headers.get("range", ""))
        name = _OBJECT.search(self.path)
        if last and name:
            size = len(self.storage.get_file(name[1], unquote(name[2])))
            self.headers.replace_header("range", f"bytes={max(0, size - int(last[1]))}-")
        with _Storage._lock:
            self._read = self._generation()
            if not self._unmet(self._read):
                self._answer("do_GET")

    def do_POST(self) -> None:
        with _Storage._lock:
            if not self._unmet(self._generation()):
                self._answer("do_POST")

    def do_PUT(self) -> None:
        self._answer("do_PUT")

    def do_DELETE(self) -> None:
        with _Storage._lock:
            if not self._unmet(self._generation()):
                self._answer("do_DELETE")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: Connections that wait; TensorStore opens dozens at once, and those refused wait for minutes.
    request_queue_size = 256


@contextmanager
def emulated() -> Iterator[dict[str, str]]:
    """Runs the emulator; yields the environment by which clients in any process find it.

    `refused` and `forbidden` are buckets that answer 401 and 403.
    """
    storage = _Storage(use_memory_fs=True)
    handlers.create_bucket(BUCKET, storage)
    server = _Server(("127.0.0.1", 0), partial(_Handler, storage))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        # Without a token, TensorStore would look for the machine's for ten seconds.
        yield {**dict.fromkeys(ADDRESSES, url), "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def upload(folder: Path, to: Path) -> None:
    """Copies a folder into a bucket."""
    for file in folder.rglob("*"):
        if file.is_file():
            (to / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
