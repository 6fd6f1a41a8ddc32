"""Writes a Space of the Hugging Face hub: a web demo of an exported model.

    <folder>/
        README.md               front matter by which the hub runs it
        app.py                  the demo of `refseg_jax.cli.demo`, with this model
        requirements.txt        what the library needs, without the web server, which the hub brings
        refseg_jax/             the library, with its `refseg_jax-VERSION.dist-info`
        model/                  the export, if it is not on the hub

The library lies in the folder, so that a Space runs whatever package index the hub asks.
"""

import json
import re
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from refseg_jax.checkpoints import manifest
from refseg_jax.errors import escaped
from refseg_jax.exports import folder as exported

MODEL = "model"

#: Version of the web server that the hub is asked for where none is installed here.
_GRADIO = "6.31.0"
_PYTHON = "3.12"
_LIBRARY = Path(__file__).parents[1]

_APP = '''"""A web demo of one model; made by `tools.export --space`."""

from pathlib import Path

from refseg_jax.cli.demo.app import build_demo

MODEL = {model}

if __name__ == "__main__":
    build_demo([MODEL]).launch()
'''


def write_space(output: Path, export: Path, name: str = "") -> dict[str, int]:
    """Writes the folder of a Space, complete or not at all.

    Args:
        output: the folder, which must not exist.
        export: the exported folder, which is compared with its digests first.
        name: `OWNER/NAME` of the export on the hub; without it, the export is copied into the folder.

    Returns:
        Path of each file -> bytes, without those of the library.

    Raises:
        UserError: the export is damaged, or the output exists or cannot be written.
    """
    config = exported.read_config(export)
    exported.check_files(export, (exported.TOKENIZER,))
    title = f"{config.model['name']}: segment by words"
    with exported.new_folder(output, "--space") as target:
        model = repr(f"hf://{name}") if name else f'str(Path(__file__).parent / "{MODEL}")'
        (target / "app.py").write_text(_app(model), encoding="utf-8")
        (target / "README.md").write_text(_readme(title, config, name), encoding="utf-8")
        requirements = "".join(f"{line}\n" for line in _requirements())
        (target / "requirements.txt").write_text(requirements, encoding="utf-8")
        _copy_library(target)
        if not name:
            for file in (*manifest.read(export), manifest.NAME):
                (target / MODEL / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(export / file, target / MODEL / file)
    files = (path for path in output.rglob("*") if path.is_file())
    sizes = {path.relative_to(output).as_posix(): path.stat().st_size for path in files}
    return {file: size for file, size in sorted(sizes.items()) if not file.startswith("refseg_jax")}


def _app(model: str) -> str:
    text = _APP.format(model=model)
    return text if "Path(" in model else text.replace("from pathlib import Path\n\n", "")


def _readme(title: str, config: exported.ExportConfig, name: str) -> str:
    # JSON's texts are YAML's.
    fields = {
        "title": title,
        "emoji": "🔎",
        "colorFrom": "indigo",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": _gradio(),
        "python_version": _PYTHON,
        "app_file": "app.py",
        "pinned": False,
    }
    if name:
        fields["models"] = [name]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    dataset = escaped(str(config.data.get("dataset") or "an unnamed dataset"))
    where = f"[{name}](https://huggingface.co/{name})" if name else f"in `{MODEL}/`"
    text = (
        f"A picture and words in, a mask for each expression out. The model is {where}, trained on "
        f"{dataset}; its card states the licence of the data and the scores."
    )
    return "\n".join(["---", *lines, "---", "", f"# {title}", "", text, ""])


def _gradio() -> str:
    try:
        return metadata.version("gradio")
    except metadata.PackageNotFoundError:
        return _GRADIO


def _requirements() -> Iterable[str]:
    """What the library and its demo need, by the metadata of the installed library."""
    for line in metadata.requires("refseg_jax") or ():
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if re.match(r"gradio\b", requirement):
            continue  # The hub installs that of `sdk_version`.
        if "extra ==" not in marker:
            yield f"{requirement}; {marker}" if marker else requirement
        elif re.fullmatch(r"extra == ['\"]demo['\"]", marker):
            yield requirement


def _copy_library(target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(_LIBRARY, target / _LIBRARY.name, ignore=ignored)
    version = metadata.version("refseg_jax")
    described = target / f"refseg_jax-{version}.dist-info"
    described.mkdir()
    text = f"Metadata-Version: 2.1\nName: refseg_jax\nVersion: {version}\n"
    (described / "METADATA").write_text(text, encoding="utf-8")
