"""The JSON API of the demo, over loopback."""

import concurrent.futures
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg_jax.cli.demo.answers import judged
from refseg_jax.cli.pairs import line_of
from refseg_jax.evaluation.thresholds import Thresholds
from tests.refseg_jax.cli.demo.serving import LIMITS, ROOT, Served, form, picture

TEXTS = ["the red box", "both boxes"]


def _lines(served: Served, image: bytes, texts: list[str], name: str = "image") -> list[Any]:
    """What `Predictor.predict` says."""
    answers = served.predictor.predict(image, texts)
    return [
        line_of(f"{name}#{k}", name, *one) for k, one in enumerate(zip(texts, answers, strict=True))
    ]


def _same(found: list[Any], expected: list[Any]) -> bool:
    """Scores are rounded by the last bits, because shapes differ."""
    scores = [[line["score"] for line in lines] for lines in (found, expected)]
    presences = [[line["presence"] for line in lines] for lines in (found, expected)]
    rest = [[{**line, "score": 0, "presence": 0} for line in lines] for lines in (found, expected)]
    return (
        rest[0] == rest[1]
        and np.allclose(*scores, atol=1e-6, rtol=0)
        and np.allclose(*presences, atol=1e-6, rtol=0)
    )


def test_the_lines_are_those_of_a_prediction(served: Served) -> None:
    status, found = served.ask(image=picture(), expressions=TEXTS, name="a.png")
    assert status == 200 and found.keys() == {"model", "predictions", "notes"}
    assert found["model"] == "tiny_run" and found["notes"] == []
    assert _same(found["predictions"], _lines(served, picture(), TEXTS, "a.png"))
    assert found["predictions"][0]["segmentation"]["size"] == [40, 30]


def test_a_form_is_answered_as_json_is(served: Served) -> None:
    fields = [*(("expressions", text) for text in TEXTS), ("thresholds", '{"mask": 0.5}')]
    body, kind = form(picture(), [*fields, ("maps", "true")])
    status, found = served.send("POST", "/v1/predictions", body, content_type=kind)
    asked = {"thresholds": {"mask": 0.5}, "maps": True, "name": "a.png"}
    assert (status, found) == served.ask(image=picture(), expressions=TEXTS, **asked)
    assert status == 200 and all(line["map"] for line in found["predictions"])


def test_thresholds_of_a_request_decide(served: Served) -> None:
    low, high = ({"mask": 0.05, "presence": p} for p in (0.01, 0.99))
    _, found = served.ask(image=picture(), expressions=TEXTS, thresholds=low)
    assert all(line["present"] for line in found["predictions"])
    assert found["predictions"][0]["thresholds"] == {**low, "origin": "given"}
    assert "map" not in found["predictions"][0]
    area = coco_mask.area(found["predictions"][0]["segmentation"])
    assert area > coco_mask.area(_lines(served, picture(), TEXTS)[0]["segmentation"])
    _, found = served.ask(image=picture(), expressions=TEXTS, thresholds=high)
    assert not any(line["present"] for line in found["predictions"])


def test_32_clients_at_once_are_all_answered_right(served: Served) -> None:
    asked = [
        (picture(seed, 20 + seed % 7, 30), [*TEXTS, "a circle"][seed % 2 : 1 + seed % 3])
        for seed in range(32)
    ]
    asked = [(image, texts or ["a circle"]) for image, texts in asked]
    _, before = served.send("GET", "/v1/health")
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda one: served.ask(image=one[0], expressions=one[1]), asked))
    assert {status for status, _ in answers} == {200}
    for (image, texts), (_, found) in zip(asked, answers, strict=True):
        assert _same(found["predictions"], _lines(served, image, texts))
    # Together, and never more of them waiting than there is room for.
    _, after = served.send("GET", "/v1/health")
    assert 0 < after["batches"] - before["batches"] < len(asked)
    assert after["waiting"] == 0 and 1 < after["most_waiting"] <= LIMITS.waiting


def test_the_health_names_models_and_limits(served: Served) -> None:
    status, found = served.send("GET", "/v1/health")
    assert status == 200 and found["status"] == "ok" and found["waiting"] == 0
    (model,) = found["models"]
    assert model["name"] == "tiny_run" and model["presence_head"] is True
    assert model["thresholds"] == {"mask": 0.55, "presence": 0.5, "origin": "config"}
    assert found["limits"]["pixels"] == LIMITS.pixels
    # Nothing of the disk.
    assert "/" not in json.dumps(found)


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no picture": ({"image": None}, 400, "image: missing"),
    "a path": ({"image": "/etc/passwd"}, 400, "image: is no base64"),
    "a path as bytes": ({"image": b"/etc/passwd"}, 422, ""),
    "an address": ({"image": "http://localhost/a.png"}, 400, "image: is no base64"),
    "no image": ({"image": b"GIF89a"}, 422, ""),
    "truncated": ({"image": picture()[:-30]}, 422, ""),
    "many pixels": ({"image": picture(0, 101, 100)}, 413, "image: 100 x 101 pixels are more"),
    "many bytes": ({"image": bytes(LIMITS.file_bytes + 1)}, 413, "bytes are more than"),
    "no expression": ({"expressions": []}, 400, "expressions: there is none"),
    "a text": ({"expressions": "box"}, 400, "expressions: give a list of texts"),
    "numbers": ({"expressions": [1]}, 400, "expressions: give a list of texts"),
    "an empty one": ({"expressions": ["a", " "]}, 400, "expressions[1]: is empty"),
    "many": ({"expressions": ["a"] * 5}, 400, "5 are more than the allowed 4"),
    "a long one": (
        {"expressions": ["a" * 301]},
        400,
        "301 characters are more than the allowed 300",
    ),
    "half a character": ({"expressions": ["\ud800"]}, 400, "expressions[0]: has half"),
    "another model": ({"model": "../x"}, 404, "model: there is no ../x; give one of tiny_run"),
    "a list as model": ({"model": []}, 404, "model: there is no []"),
    "a name": ({"name": "a" * 256}, 400, "name: give a text"),
    "a threshold": ({"thresholds": {"mask": 1}}, 400, "thresholds.mask=1 is not between"),
    "a threshold of text": ({"thresholds": {"mask": "x"}}, 400, "thresholds.mask=x"),
    "true": ({"thresholds": {"mask": True}}, 400, "thresholds: give numbers"),
    "another threshold": ({"thresholds": {"masks": 0.5}}, 400, "thresholds: give"),
    "maps": ({"maps": 1}, 400, "maps: give true or false"),
    "an unknown field": ({"text": "a"}, 400, "text: unknown field; give image"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_faulty_request_gets_one_line(served: Served, case: str) -> None:
    fields, status, words = BAD[case]
    found, said = served.ask(**{"image": picture(), "expressions": TEXTS, **fields})
    assert (found, said.keys()) == (status, {"error"})
    assert words in said["error"] and said["error"].isprintable()


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "the body: is no JSON"),
        (b"[]", "application/json", 400, "the body: give a JSON object"),
        (b"[" * 100_000, "application/json", 400, "the body: is no JSON"),
        (b"\xff", "application/json", 400, "the body: is no JSON"),
        (b"{}", "text/plain", 415, "content-type: give"),
        (b"{}", "", 415, "content-type: give"),
        (b"--xyz", "multipart/form-data", 400, "the form cannot be read"),
        (b"nothing", "multipart/form-data; boundary=xyz", 400, "the form cannot be read"),
        (bytes(LIMITS.body_bytes + 1), "application/json", 413, "the request has more than"),
    ],
)
def test_a_body_that_is_none_gets_one_line(
    served: Served, body: bytes, kind: str, status: int, words: str
) -> None:
    found, said = served.send("POST", "/v1/predictions", body, content_type=kind)
    assert found == status and words in said["error"]


def test_a_body_of_unknown_length_is_counted(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    head = b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        # The server may stop to listen before all is sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(3):
                client.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    assert served.ask(image=picture(), expressions=TEXTS)[0] == 200


def test_who_comes_when_too_many_wait_is_sent_away(served: Served) -> None:
    """Requests that do not arrive wait as well: none of them is read in part by the hundred."""
    host, port = served.address.removeprefix("http://").split(":")
    head = "POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as held:
        for _ in range(LIMITS.waiting):
            client = held.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
        status = 200
        for _ in range(50):
            status, said = served.ask(image=picture(), expressions=TEXTS)
            if status != 200:
                break
        assert (status, said) == (
            503,
            {"error": f"{LIMITS.waiting} requests wait already; try again in a while"},
        )
    for _ in range(50):
        # Those who have left make room.
        if served.ask(image=picture(), expressions=TEXTS)[0] == 200:
            return
    raise AssertionError("nobody is let in any more")


def test_no_file_of_the_server_is_served(served: Served) -> None:
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/file=/etc/passwd",
        f"/gradio_api/file={ROOT / 'README.md'}",
        "/static/../../../../etc/passwd",
    ):
        status, said = served.send("GET", path)
        assert status in (403, 404), path
        assert "root:" not in json.dumps(said)


def test_the_page_reads_no_file_that_was_not_sent_to_it(served: Served, tmp_path: Path) -> None:
    """By the way in which a browser calls the page's events."""

    def succeeds(path: str, words: str = "") -> bool:
        # Gradio looks for files in texts as well.
        named = {"path": words, "meta": {"_type": "gradio.FileData"}} if words else TEXTS[0]
        found = served.ask_page(path, named, "tiny_run")
        assert found["success"] or found["error"] == "a file was not uploaded here"
        return found["success"]

    body, kind = form(picture(), [], field="files")
    _, (sent,) = served.send("POST", "/gradio_api/upload", body, content_type=kind)
    assert succeeds(sent)
    (tmp_path / "mine.png").write_bytes(picture())
    folder = str(Path(sent).parent)
    for path in (
        str(tmp_path / "mine.png"),
        str(ROOT / "docs/images/scenes.png"),
        "/etc/passwd",
        f"{folder}/../../../{(tmp_path / 'mine.png').relative_to('/')}",
        f"{folder}/../../..{tmp_path}/mine.png",
        f"file://{tmp_path}/mine.png",
        f"http://127.0.0.1:1{tmp_path}/mine.png",
        folder,
    ):
        assert not succeeds(path), path
        assert not succeeds(sent, words=path), path
    assert (
        served.send("POST", "/gradio_api/queue/join", b"{", content_type="application/json")[0]
        == 400
    )


def test_nobody_is_told(served: Served) -> None:
    """Neither by the server, whose environment says so, nor by the page."""
    config = json.loads(served.read("/config"))
    assert config["analytics_enabled"] is False
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import refseg_jax.cli.demo.app, os, gradio.analytics as a; print(a.analytics_enabled(), "
            "os.environ['HF_HUB_DISABLE_TELEMETRY'])",
        ],
        cwd=ROOT,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "True"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "1"], done.stderr


def test_other_thresholds_give_what_the_model_would(served: Served) -> None:
    """But for pixels that are that near to them."""
    image = np.asarray(Image.open(io.BytesIO(picture())).convert("RGB"))
    (known,) = served.predictor.predict(image, TEXTS[:1], maps=True)
    assert known.soft_map is not None
    again = judged(known, known.thresholds)
    assert again.mask is known.mask or (again.mask == known.mask).all()
    for mask in (0.1, 0.5, 0.77):
        found = judged(known, Thresholds(mask, 0.01))
        expected = known.soft_map / 255.0 > mask
        assert (found.uncleared == expected).all() and found.present is True
        assert found.score == pytest.approx(
            known.soft_map[expected].mean() / 255.0 if expected.any() else 0
        )
