from pathlib import Path

import jax

from refseg_jax.reporting import parameter_table

SHAPES = {
    "vision.blocks.0.kernel": (100, 10),
    "vision.blocks.1.kernel": (100, 10),
    "vision.tokens": (500,),
    "text.blocks.0.kernel": (30, 10),
    "text.blocks.0.bias": (200,),
    "scale": (),
}
LEAVES = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in SHAPES.items()}


def test_the_summary_adds_up_by_tower_and_by_module() -> None:
    assert [line.split() for line in parameter_table.summary(LEAVES).splitlines()] == [
        ["vision", "2,500", "83.3", "%"],
        ["vision.blocks", "2,000", "66.6", "%"],
        ["vision.tokens", "500", "16.7", "%"],
        ["text", "500", "16.7", "%"],
        ["scale", "1", "0.0", "%"],
        ["total", "3,001", "100.0", "%"],
    ]


def test_lines_are_aligned_and_begin_with_the_towers() -> None:
    lines = parameter_table.summary(LEAVES).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line[0] for line in lines] == ["v", " ", " ", "t", "s", "t"]


def test_running_averages_are_counted_apart() -> None:
    averages = {"vision.norm.mean": jax.ShapeDtypeStruct((40,), "float32")}
    plain = parameter_table.summary(LEAVES).splitlines()
    *lines, last = parameter_table.summary({**LEAVES, **averages}, averages.keys()).splitlines()
    assert [line.split() for line in lines] == [line.split() for line in plain]
    assert last.split() == ["running", "averages", "40", "not", "trained"]


def _rows(text: str) -> dict[str, list[str]]:
    return {
        cells[1].strip(): [cell.strip() for cell in cells[2:5]]
        for line in text.splitlines()
        if len(cells := line.split("|")) > 4
    }


def test_the_file_has_every_parameter(tmp_path: Path) -> None:
    path = tmp_path / "parameters.txt"
    parameter_table.write_table(LEAVES, frozenset(), path)
    rows = _rows(path.read_text())
    assert rows["vision.blocks.0.kernel"] == ["(100, 10)", "float32", "1,000"]
    assert rows.keys() - {"Name"} == LEAVES.keys()


def test_the_file_lists_running_averages_behind_the_parameters(tmp_path: Path) -> None:
    averages = {"vision.norm.mean": jax.ShapeDtypeStruct((40,), "float32")}
    path = tmp_path / "parameters.txt"
    parameter_table.write_table({**averages, **LEAVES}, averages.keys(), path)
    parameters, _, rest = path.read_text().partition("Running averages")
    assert _rows(parameters).keys() - {"Name"} == LEAVES.keys()
    assert _rows(rest).keys() - {"Name"} == averages.keys()
