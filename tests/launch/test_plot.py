"""Pictures of many runs: where marks and words stand, and their files."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from launch.pictures import Picture, publish_pictures
from launch.plot import Plot
from launch.plot_layers import Axis, Band, Bar, Dots, Line, Note, Tile, power_of_ten


def test_a_plot_places_its_marks_by_logarithm_and_names():
    plot = Plot(
        "p",
        "P",
        Axis("x", is_log=True, low=1.0, high=100.0),
        Axis("y", names=("first", "second <b>")),
        [
            Dots("dots", [(1.0, 0, "a"), (10.0, 0, "b"), (100.0, 1, "c & <d>"), (float("nan"), 0, "no")], "0"),
            Bar("bar", (1.0, 10.0), 1, "1", 10),
            Note(10.0, 1.0, "note"),
        ],
    )
    svg = plot.svg()
    ET.fromstring(svg)
    xs = [float(x) for x in re.findall(r'<circle class="c0 ring" cx="([\d.]+)"', svg)][:-1]  # the last is the legend's
    assert len(xs) == 3
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert "c &amp; &lt;d&gt;" in svg
    assert "second &lt;b&gt;" in svg
    assert Plot("q", "", Axis("x", is_log=True), Axis("y"), [Line("", [(0.0, 1.0), (-1.0, 2.0)], "0")]).svg() == ""


def test_words_of_a_plot_stay_inside_and_off_each_other():
    """Long ticks make room, a long legend takes more lines."""
    sizes = [1e15 * 1.7**i for i in range(12)]
    dots = [Dots(f"a name of some length {i}", [(x, x, "")], "0") for i, x in enumerate(sizes)]
    axis = Axis("x", is_log=True, show=power_of_ten)
    svg = Plot("p", "P", axis, axis, [*dots, Band("b", [(x, x, 2 * x) for x in sizes], "1"),
                                      Tile((1e15, 1e16), (1e15, 1e16), "h0", "t", "")]).svg()  # fmt: skip
    for x, anchor, words in re.findall(r'<text[^>]* x="([\d.-]+)" [^>]*text-anchor="(\w+)">([^<]*)<', svg):
        width = 6 * len(words)
        left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        assert left >= 0, words
        assert left + width <= 520 + 6, words


def test_powers_of_ten_read_as_people_write_them():
    assert [power_of_ten(x) for x in (1e15, 3e15, 2.5e-3, 1.0)] == ["10¹⁵", "3·10¹⁵", "2.5·10⁻³", "10⁰"]


def test_png_files_are_drawn_from_the_same_pictures_with_their_words(tmp_path: Path):
    pytest.importorskip("resvg_py", reason="resvg-py draws PNG files")
    image = pytest.importorskip("PIL.Image", reason="Pillow reads them back")
    plot = Plot("a", "A", Axis("x"), Axis("y"), [Line("", [(0.0, 0.0), (1.0, 1.0)], "0", "thick")])
    assert publish_pictures(tmp_path, [Picture("a", plot.svg(), "words on top")]) == ""
    with image.open(tmp_path / "a.png") as opened:
        drawn = opened.convert("RGB")
    assert drawn.size == (1040, 720)
    assert drawn.getpixel((2, 2)) == (255, 255, 255)
    colours = {colour for _, colour in drawn.getcolors(1 << 20)}
    assert (0x2F, 0x66, 0xB0) in colours
    top = drawn.crop((0, 0, 1040, 56))
    assert len(top.getcolors(1 << 20)) > 2, "the caption is not there"
