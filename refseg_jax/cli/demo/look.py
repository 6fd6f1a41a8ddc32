"""How the page looks, and its examples."""

from pathlib import Path

import gradio as gr  # pyright: ignore[reportMissingImports]

_FOLDER = Path(__file__).parent / "examples"

#: Held-out pictures of Scenes, and what to ask them; some of it is not there.
EXAMPLES = tuple(
    (str(_FOLDER / name), "\n".join(texts))
    for name, texts in (
        ("cars.jpg", ("the red car", "the wheels of the purple car", "the yellow car")),
        ("robots.jpg", ("the robot with a hat", "all trees", "the crown of the green tree")),
        ("birds.jpg", ("the yellow bird", "the roof rack of the car", "the blue house")),
        ("boats.jpg", ("both fish", "the sail of the green boat")),
    )
)

INTRODUCTION = """
<header class="rs-head">
<h1>Find it by words</h1>
<p>A picture and a few expressions in, the region of each out, or <em>no match</em>.</p>
</header>
"""

CSS = """
.rs-head h1 { font-size: 1.6rem; font-weight: 700; margin: 0 0 .2rem; }
.rs-head p { margin: 0; opacity: .75; }
.rs-legend ul { list-style: none; margin: 0; padding: 0; }
.rs-legend li {
  display: grid; grid-template-columns: 1.1rem 1fr auto; gap: 0 .6rem; align-items: center;
  padding: .45rem .1rem; border-top: 1px solid var(--border-color-primary);
}
.rs-legend li:first-child { border-top: 0; }
.rs-swatch {
  width: 1.1rem; height: 1.1rem; border-radius: .3rem; border: 2px solid rgba(15, 15, 15, .7);
}
.rs-absent .rs-swatch { border: 2px dashed var(--body-text-color-subdued); }
.rs-words { font-weight: 600; overflow-wrap: anywhere; }
.rs-facts {
  grid-column: 2 / -1; font-size: .85rem; color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums;
}
.rs-badge {
  font-size: .8rem; padding: .1rem .5rem; border-radius: 1rem; white-space: nowrap;
  background: #7f1d1d; color: #fff;
}
.rs-none {
  margin: 0 0 .4rem; padding: .7rem .9rem; border-radius: .5rem; border-left: 4px solid #b91c1c;
  background: color-mix(in srgb, #b91c1c 12%, transparent);
}
.rs-times { margin: 0; font-size: .85rem; color: var(--body-text-color-subdued); }
#rs-maps .grid-wrap, #rs-group .grid-wrap { height: auto !important; max-height: none !important; }
@media (max-width: 480px) {
  .gradio-container { padding: .5rem !important; }
}
"""


def theme() -> gr.themes.Base:
    """Fonts of the system: no other server is asked for them."""
    return gr.themes.Soft(
        primary_hue="indigo",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
