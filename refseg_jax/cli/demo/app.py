"""The page of the demo, in Gradio.

    build_demo(["runs/scenes_unires"]).launch()

Its events are no API. The browser names files that it has sent before; only those in Gradio's own folder
of uploads are read, as bytes.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

from refseg_jax.cli.demo.answers import (
    COLOURS,
    Asked,
    drawing,
    heat,
    judged,
    legend,
    texts_of,
    told,
    zipped,
)
from refseg_jax.cli.demo.batching import Worker
from refseg_jax.cli.demo.desk import Desk, Member, Upload
from refseg_jax.cli.demo.limits import Limits
from refseg_jax.cli.demo.look import CSS, EXAMPLES, INTRODUCTION, theme
from refseg_jax.cli.demo.models import Model, open_models
from refseg_jax.cli.demo.uploads import is_upload
from refseg_jax.errors import UserError
from refseg_jax.evaluation.thresholds import Thresholds
from refseg_jax.prediction.painting import Prediction

#: Seconds: how often files of the page are removed, and after how long; and how long answers are kept
#: for a user who does nothing.
_SWEEP = (600, 3600)
_KEPT = 1800
#: Events that are prepared and drawn at once; the models answer one after the other.
_THREADS = 4


def build_demo(checkpoints: Sequence[str]) -> gr.Blocks:
    """The page for models, ready for `launch()`, as a Space of the hub calls it.

    Args:
        checkpoints: runs, checkpoints, exports, or `hf://OWNER/NAME`.

    Raises:
        UserError: one cannot be opened.
    """
    limits = Limits()
    models = open_models(checkpoints, "config", limits.pixels)
    worker = Worker({name: model.predictor for name, model in models.items()}, limits.waiting)
    return page_of(models, worker, limits)


def mounted(app: FastAPI, page: gr.Blocks, limits: Limits) -> FastAPI:
    """The app with the page at `/`."""
    # Gradio checks paths in requests only then.
    page.has_launched = True
    return gr.mount_gradio_app(app, page, path="/", show_error=False, **_served(limits))


def _served(limits: Limits) -> dict[str, Any]:
    """What Gradio takes where a page is served, not where it is made."""
    return {
        "theme": theme(),
        "css": CSS,
        "footer_links": ["gradio"],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "allowed_paths": [],
        "max_file_size": limits.file_bytes,
    }


class _Page(gr.Blocks):
    """Blocks that know how they are served."""

    limits = Limits()

    def launch(self, *arguments: Any, **named: Any) -> Any:
        """See `gradio.Blocks.launch`."""
        return super().launch(*arguments, **{**_served(self.limits), **named})


def _as_sent(component: Any, limits: Limits) -> None:
    """Lets a component hand on `Upload`s: sizes are checked before anything decodes a picture.

    A method of the object, not of a class of its own: for those, Gradio writes a file beside this one.
    """

    def uploads(payload: Any) -> Any:
        if payload is None or not isinstance(component, gr.File):
            return None if payload is None else _uploaded(payload, limits)
        files = getattr(payload, "root", payload)
        files = files if isinstance(files, list) else [files]
        if len(files) > limits.pictures:
            raise _error(f"Give at most {limits.pictures} pictures.")
        return [_uploaded(file, limits) for file in files]

    component.preprocess = uploads


def _uploaded(payload: Any, limits: Limits) -> Upload:
    """Reads a file that Gradio has stored for a browser, and no other."""
    if payload.path is None:
        raise _error("Upload or paste a picture.")
    if not is_upload(payload.path):
        raise _error("This picture was not uploaded here.")
    path = Path(payload.path)
    if path.stat().st_size > limits.file_bytes:
        raise _error(f"The file is larger than {limits.megabytes} MB; scale the picture down.")
    return Upload(Path(payload.orig_name or path.name).name[:255] or "picture", path.read_bytes())


def _error(line: str) -> gr.Error:
    """What the page shows of an error; the server prints nothing."""
    return gr.Error(line, print_exception=False)


class _Events:
    """What happens when something is clicked."""

    def __init__(self, models: Mapping[str, Model], desk: Desk) -> None:
        self._models, self._desk = models, desk
        # Removed with the process. Gradio serves copies of files in the folder of temporary ones.
        self._folder = tempfile.TemporaryDirectory(prefix="refseg_demo_")
        #: Path and text of each example.
        self.examples = [(shutil.copy(path, self._folder.name), text) for path, text in EXAMPLES]

    def ask(
        self,
        picture: Upload | None,
        text: str,
        model: str,
        mask: float,
        presence: float,
        token: str | None,
    ) -> tuple[Any, ...]:
        """Answers; outputs as `_shown`, and before them the token and the times."""
        if picture is None:
            raise _error("Upload or paste a picture first.")
        texts = texts_of(text)
        if not texts:
            raise _error("Write what to look for: one expression a line.")
        if len(texts) > len(COLOURS):
            raise _error(f"Ask for at most {len(COLOURS)} expressions at a time.")
        try:
            token, asked, times = self._desk.ask(token, model, picture, texts)
        except UserError as error:
            raise _error(str(error)) from None
        return (token, told(times), *self._shown(asked, mask, presence))

    def redraw(self, mask: float, presence: float, token: str | None) -> tuple[Any, ...]:
        """Draws what was found by other thresholds; nothing is asked."""
        asked = self._desk.sessions.get(token)
        if asked is None:
            if token is None:
                return (gr.skip(),) * 4
            raise _error("These answers are not kept any more; ask again.")
        return self._shown(asked, mask, presence)

    def download(self, mask: float, presence: float, token: str | None) -> str:
        """Writes a zip of what is shown; returns its path."""
        asked = self._desk.sessions.get(token)
        if asked is None:
            raise _error("There is nothing to download; ask first.")
        data = zipped(asked.name, list(asked.found), self._judged(asked, mask, presence))
        # One for each user: who downloads again replaces it.
        path = Path(self._folder.name) / f"{token}" / "predictions.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def chosen(self, model: str, token: str | None) -> tuple[Any, ...]:
        """The sliders of a model, and an empty result."""
        self._desk.sessions.drop(token)
        one = self._models[model]
        thresholds = one.predictor.thresholds
        presence = gr.update(value=thresholds.presence, visible=one.head)
        return (
            gr.update(value=thresholds.mask),
            presence,
            None,
            "",
            "",
            [],
            gr.update(visible=False),
        )

    def group(self, pictures: list[Upload], text: str, model: str) -> tuple[Any, str]:
        """Asks a group; gallery and summary."""
        if not pictures:
            raise _error("Upload the pictures first.")
        if not text.strip():
            raise _error("Write what to look for.")
        try:
            members = self._desk.ask_group(model, pictures, text.strip())
        except UserError as error:
            raise _error(str(error)) from None
        found = sum(member.found for member in members)
        line = (
            f"In **{found}** of {len(members)} pictures."
            if found
            else "**No match** in any picture."
        )
        return [(member.drawn, _caption(member)) for member in members], line

    def _judged(self, asked: Asked, mask: float, presence: float) -> list[Prediction]:
        thresholds = Thresholds(mask, presence)
        usual = self._models[asked.model].predictor.thresholds
        if (mask, presence) == (usual.mask, usual.presence):
            thresholds = usual
        return [judged(one, thresholds) for one in asked.found.values()]

    def _shown(self, asked: Asked, mask: float, presence: float) -> tuple[Any, ...]:
        """Picture, legend, probability maps, and the button of the download."""
        answers, texts = self._judged(asked, mask, presence), list(asked.found)
        maps = [
            (heat(asked.pixels, one.soft_map), text)
            for text, one in asked.found.items()
            if one.soft_map is not None
        ]
        picture = drawing(asked.pixels, answers)
        return picture, legend(texts, answers), maps, gr.update(visible=True)


def _caption(member: Member) -> str:
    # Its end is cut off where a picture is narrow.
    return f"{f'score {member.score:.2f}' if member.found else 'no match'} · {member.name}"


def page_of(models: Mapping[str, Model], worker: Worker, limits: Limits) -> gr.Blocks:
    """The page for models that are open.

    Args:
        models: name -> model; the first is chosen.
        worker: owns them.
        limits: of every question.
    """
    desk = Desk(models, worker, limits)
    events = _Events(models, desk)
    page = _Page(analytics_enabled=False, title="refseg_jax", delete_cache=_SWEEP)
    page.limits = limits
    with page:
        token = gr.State(None, time_to_live=_KEPT, delete_callback=desk.sessions.drop)
        gr.HTML(INTRODUCTION)
        model = gr.Dropdown(list(models), label="Model", visible=len(models) > 1)
        with gr.Tab("One picture"):
            _one_picture(events, models, limits, model, token)
        with gr.Tab("Which of these pictures?"):
            _group(events, limits, model)
    page.queue(max_size=limits.waiting, default_concurrency_limit=_THREADS)
    return page


def _one_picture(
    events: _Events, models: Mapping[str, Model], limits: Limits, model: Any, token: Any
) -> None:
    first = next(iter(models.values()))
    usual = first.predictor.thresholds
    with gr.Row():
        with gr.Column():
            picture = gr.Image(
                label="Picture",
                sources=["upload", "clipboard"],
                height=340,
                elem_id="rs-picture",
                buttons=[],
            )
            _as_sent(picture, limits)
            texts = gr.Textbox(
                label=f"What to look for, one a line (up to {len(COLOURS)})",
                placeholder="the red car\nthe wheels of the red car",
                lines=3,
                max_lines=len(COLOURS),
                elem_id="rs-texts",
            )
            ask = gr.Button("Find", variant="primary", elem_id="rs-ask")
            examples = gr.Dataset(
                components=[gr.Image(render=False)],
                samples=[[path] for path, _ in events.examples],
                type="index",
                label="Examples",
                elem_id="rs-examples",
            )
        with gr.Column():
            result = gr.Image(
                label="Found",
                interactive=False,
                format="jpeg",
                height=340,
                elem_id="rs-result",
                buttons=["fullscreen"],
            )
            shown = gr.HTML(elem_id="rs-shown")
            times = gr.HTML(elem_id="rs-times")
            with gr.Group():
                mask = _slider("Mask threshold", usual.mask, "rs-mask")
                presence = _slider(
                    "Presence threshold", usual.presence, "rs-presence", visible=first.head
                )
            download = gr.Button("Download masks", visible=False, elem_id="rs-download")
            file = gr.DownloadButton(visible="hidden", elem_id="rs-zip")
            with gr.Accordion("Probability maps", open=False):
                maps = gr.Gallery(
                    columns=2, height="auto", format="jpeg", show_label=False, elem_id="rs-maps"
                )
    drawn = [result, shown, maps, download]
    examples.click(
        lambda number: events.examples[number],
        [examples],
        [picture, texts],
        api_visibility="private",
    )
    quiet: Any = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on(
        [ask.click, texts.submit],
        events.ask,
        [picture, texts, model, mask, presence, token],
        [token, times, *drawn],
        api_visibility="private",
        show_progress_on=[result],
    )
    for slider in (mask, presence):
        slider.input(
            events.redraw, [mask, presence, token], drawn, trigger_mode="always_last", **quiet
        )
    model.change(
        events.chosen,
        [model, token],
        [mask, presence, result, shown, times, maps, download],
        **quiet,
    )
    # A browser downloads what a link leads to when it is clicked; the link is there only afterwards.
    download.click(events.download, [mask, presence, token], [file], **quiet).success(
        None, js="() => setTimeout(() => document.querySelector('#rs-zip').click(), 200)"
    )


def _slider(label: str, value: float, name: str, **more: Any) -> gr.Slider:
    return gr.Slider(0.01, 0.99, value, step=0.01, label=label, elem_id=name, buttons=[], **more)


def _group(events: _Events, limits: Limits, model: Any) -> None:
    with gr.Row():
        with gr.Column():
            pictures = gr.File(
                label=f"Up to {limits.pictures} pictures",
                file_count="multiple",
                file_types=["image"],
                elem_id="rs-pictures",
            )
            _as_sent(pictures, limits)
            text = gr.Textbox(
                label="What to look for", placeholder="the red car", elem_id="rs-group-text"
            )
            ask = gr.Button("Which show it?", variant="primary", elem_id="rs-group-ask")
        with gr.Column():
            line = gr.Markdown(elem_id="rs-group-line")
            gallery = gr.Gallery(
                label="Those that show it first",
                columns=2,
                height="auto",
                format="jpeg",
                elem_id="rs-group",
            )
    gr.on(
        [ask.click, text.submit],
        events.group,
        [pictures, text, model],
        [gallery, line],
        api_visibility="private",
    )
