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


def test_the_file_has_every_parameter(tmp_path: Path) -> None:
    path = tmp_path / "parameters.txt"
    parameter_table.write_table(LEAVES, path)
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:5]]
        for line in path.read_text().splitlines()
        if len(cells := line.split("|")) > 4
    }
    assert rows["vision.blocks.0.kernel"] == ["(100, 10)", "float32", "1,000"]
    assert rows.keys() - {"Name"} == LEAVES.keys()
