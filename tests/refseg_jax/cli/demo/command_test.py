"""Starting a demo: what is missing or wrong is one line; and the Space that `tools.export` writes."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refseg_jax.cli.demo import command
from refseg_jax.exports.exporter import export
from refseg_jax.exports.space import write_space
from tests.refseg_jax.cli.demo.serving import Served, form, picture


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name)
    )
    assert command.main(["--checkpoint=nothing", "--port=0"]) == 1
    said = capsys.readouterr().err
    assert said == "error: gradio is not installed; run pip install 'refseg_jax[demo]'\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port=99999"], "--port=99999: "),
        (["--host=192.0.2.1"], "--host=192.0.2.1 --port=0: "),
        (["--max_pixels=0"], "limits: pixels=0: give at least 1"),
        (["--thresholds=2"], "thresholds.mask=2.0 is not between"),
        ([], "nothing"),
        (["--checkpoint=nothing"], "one is given twice"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio", reason="pip install -e '.[demo]' brings gradio")
    assert command.main(["--checkpoint=nothing", "--port=0", *flags]) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and words in line and said.out == ""


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="pip install -e '.[demo]' brings gradio")
    from refseg_jax.cli.demo.server import address_of, listening
    from refseg_jax.errors import UserError

    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError) as told:
            listening("127.0.0.1", port)
    line = f"--host=127.0.0.1 --port={port}: Address already in use; give another --port"
    assert str(told.value) == f"{line}, or 0 for a free one"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_space_answers(demo_run: Path, tmp_path: Path, predictor: Any) -> None:
    """Its `app.py`, with the library and the model that lie beside it, from its own folder."""
    pytest.importorskip("gradio", reason="pip install -e '.[demo]' brings gradio")
    export(demo_run, "safetensors", tmp_path / "exported", command=["test"])
    write_space(tmp_path / "space", tmp_path / "exported")
    code = (
        "import sys, runpy; sys.path.insert(0, '.'); sys.meta_path[:] = [f for f in sys.meta_path "
        "if 'Editable' not in getattr(f, '__name__', '')]; runpy.run_path('app.py', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=tmp_path / "space",
        env={**os.environ, "GRADIO_SERVER_PORT": str(_free_port()), "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        assert process.stdout is not None
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        served = Served(found[0], predictor)
        try:
            config = json.loads(served.read("/config"))
            assert config["analytics_enabled"] is False and "rs-legend" in str(config["css"])
            body, kind = form(picture(), [], field="files")
            _, (sent,) = served.send("POST", "/gradio_api/upload", body, content_type=kind)
            answer = served.ask_page(sent, "the red box", "model")
            (one,) = predictor.predict(picture(), ["the red box"])
            assert answer["success"] is True and f"score {one.score:.2f}" in json.dumps(answer)
            assert served.ask_page(str(tmp_path / "space/app.py"), "a", "model")["success"] is False
        finally:
            process.terminate()
