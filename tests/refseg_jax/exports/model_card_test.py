"""The model card: names that others chose stay on their lines."""

import shlex

from refseg_jax.exports.folder import ExportConfig
from refseg_jax.exports.model_card import model_card


def _card(dataset: str, licences: dict[str, str], command: list[str]) -> str:
    config = ExportConfig(
        format="safetensors",
        model={"name": "unires", "image_size": 32},
        data={
            "dataset": dataset, "licences": licences, "resize": "letterbox", "context_length": 17,
        },
        eval={"threshold": 0.35, "resample": "logits", "protocol": "cris"},
        step=3,
        metrics={},
    )  # fmt: skip
    return model_card(config, shlex.join(command), {"Notes": "A note."})


def test_names_are_shown_on_one_line_and_fences_hold() -> None:
    name = "mine\n\n# Another title\x1b[31m"
    odd = "out\n```\n## Forged\udcff"
    card = _card(name, {name: "none\r\n---"}, ["tools.export", f"--output={odd}"])
    assert all(c.isprintable() or c == "\n" for c in card)
    plain = _card("mine", {"mine": "none"}, ["tools.export", "--output=out"])
    # Each line of the plain card has its counterpart: nothing has got a line of its own.
    assert len(card.splitlines()) == len(plain.splitlines())
    titles = [line for line in card.splitlines() if line.startswith("#")]
    assert titles[0] == r"# unires on mine\n\n# Another title\x1b[31m"
    assert [*titles[1:]] == [line for line in plain.splitlines() if line.startswith("## ")]
    assert r"- licence of the data: none\r\n---" in card
    # The command has three backticks, so that its fence has four.
    command = card.splitlines()[card.splitlines().index("## Made by") + 2 :][:3]
    assert command == ["````", r"tools.export '--output=out\n```\n## Forged\udcff'", "````"]


def test_the_licence_of_each_dataset_is_told() -> None:
    card = _card("one, two", {"one": "CC BY", "three": "MIT"}, ["x"])
    assert "- licence of the data: one: CC BY; two: not recorded; three: MIT\n" in card
