"""A headless Chromium, driven by its debugging protocol over two pipes; needs no other package."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Names of the program.
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The path of Chromium, if this machine has it."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """A page of a browser.

    Attributes:
        requested: addresses that it has asked for.
        said: errors of its scripts.
    """

    def __init__(self, send: Any, receive: Any, downloads: Path) -> None:
        self._send, self._receive = send, receive
        self._number = 0
        self.requested: list[str] = []
        self.said: list[str] = []
        self._session = ""
        made = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.call(f"{domain}.enable")
        allowed = {"behavior": "allow", "downloadPath": str(downloads)}
        self.call("Browser.setDownloadBehavior", **allowed)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Calls a method of the protocol; notes the events that come before its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        self._send(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._receive())
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            what, told = answer.get("method"), answer.get("params", {})
            if what == "Network.requestWillBeSent":
                self.requested.append(told["request"]["url"])
            elif what == "Runtime.exceptionThrown":
                self.said.append(str(told["exceptionDetails"]))

    def open(self, address: str, width: int = 1280, height: int = 900, scale: float = 1.0) -> None:
        """Opens an address in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, (script, found)
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30.0) -> Any:
        """The value of an expression, as soon as there is one; an element is `{}`."""
        end = time.monotonic() + seconds
        while (found := self.run(script)) in (None, False, "", 0):
            assert time.monotonic() < end, (
                f"not in {seconds} s: {script}\n{self.said}\n{self.text()}"
            )
            time.sleep(0.05)
        return found

    def text(self) -> str:
        """What a reader sees."""
        return self.run("document.body.innerText")

    def upload(self, selector: str, *paths: Path) -> None:
        """Gives files to an input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        place = found["result"]["objectId"]
        self.call(
            "DOM.setFileInputFiles", files=[str(path.resolve()) for path in paths], objectId=place
        )

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field, as a person would."""
        for step in ("focus", "select"):
            self.run(f"document.querySelector({selector!r}).{step}()")
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Clicks an element."""
        self.run(f"document.querySelector({selector!r}).click()")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes a PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser(downloads: Path) -> Iterator[Page]:
    """A browser with one page, without a profile of its own; downloads go to a folder."""
    (to_read, to_send), (read, answered) = os.pipe(), os.pipe()
    name = program()
    assert name is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--mute-audio"),
            *(f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"),
        )
        # The protocol's pipes are 3 and 4.
        script = f'exec "$@" 3<&{to_read} 4>&{answered}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", name, *flags],
            pass_fds=(to_read, answered),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(answered)
        rest = b""

        def receive() -> bytes:
            nonlocal rest
            while b"\0" not in rest:
                more = os.read(read, 2**16)
                assert more, "the browser has ended"
                rest += more
            message, _, rest = rest.partition(b"\0")
            return message

        def send(data: bytes) -> None:
            while data:
                data = data[os.write(to_send, data) :]

        try:
            yield Page(send, receive, downloads)
        finally:
            process.terminate()
            process.wait(20)
            os.close(to_send)
            os.close(read)
