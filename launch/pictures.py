"""The pictures of a page as files: SVG, which need nothing, and PNG, for which `resvg` draws them.

In: drawings that belong into a page, with a caption each. Out: NAME.svg and NAME.png in a folder, each published whole,
on white and with the caption on top. What an earlier page had and this one has not is taken away. Where no PNG can be
made, the reason is returned.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import publish_bytes
from data_prep.inspection.style import STYLE
from launch.charts import CHART_STYLE, safe
from launch.plot_layers import PLOT_STYLE

_CAPTION_HEIGHT = 30
_PNG_ZOOM = 2.0
_WITHOUT = "no PNG files, only SVG: {reason}"


@dataclass(frozen=True)
class Picture:
    name: str
    """of its files"""
    svg: str
    caption: str
    is_whole: bool = False
    """over the whole width of the page"""


def publish_pictures(folder: Path, pictures: Sequence[Picture]) -> str:
    """Why there are no PNG files; empty if there are. Raises DataError for a full disk or missing permission."""
    drawn = {picture.name: standalone(picture) for picture in pictures if picture.svg}
    images, reason = rasterised(drawn)
    files = {f"{name}.svg": svg.encode() for name, svg in drawn.items()}
    files |= {f"{name}.png": image for name, image in images.items()}
    for name, content in files.items():
        publish_bytes(folder / name, content)
    for old in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if old.name not in files:
            old.unlink()
    return reason


def standalone(picture: Picture) -> str:
    """A file of its own: the light colours written out, for most readers of SVG know no variables."""
    size = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', picture.svg)
    assert size is not None
    width, height = int(size[1]), int(size[2]) + _CAPTION_HEIGHT
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
            f"<style>{_light(STYLE + CHART_STYLE + PLOT_STYLE)}</style>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text class="ink" x="16" y="20" style="font-size: 13px">{safe(_cut(picture.caption, width))}</text>',
            f'<g transform="translate(0 {_CAPTION_HEIGHT})">',
            picture.svg.split("\n", 1)[1].rsplit("</svg>", 1)[0],
            "</g></svg>\n",
        ]
    )


def rasterised(drawn: dict[str, str]) -> tuple[dict[str, bytes], str]:
    """(PNG of each, why there are none)"""
    try:
        import resvg_py
    except ImportError:
        return {}, _WITHOUT.format(reason="the package resvg-py, which draws them, is not installed")
    if not _has_fonts():
        return {}, _WITHOUT.format(reason="no font is installed here, so they would have no words: fonts-dejavu has")
    return {name: resvg_py.svg_to_bytes(svg_string=svg, zoom=_PNG_ZOOM) for name, svg in drawn.items()}, ""


def _has_fonts() -> bool:
    """Words for which there is no font are left out of a picture without a word."""
    import resvg_py

    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 20" width="30" height="20">{}</svg>'
    blank, word = (
        resvg_py.svg_to_bytes(svg_string=box.format(inside))
        for inside in ("", '<text x="2" y="15" font-size="12" font-family="sans-serif">N*</text>')
    )
    return blank != word


def _light(style: str) -> str:
    """Rules for the dark and for print are left out, variables written out."""
    style = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", style)
    values = dict(re.findall(r"(--\w+):\s*(#\w+)", style))
    drawing = re.sub(r":root\s*\{[^}]*\}", "", style)
    rules = [rule for rule in re.findall(r"[^{}]+\{[^{}]*\}", drawing) if re.search(r"svg text|^\s*[.p]\w", rule)]
    return re.sub(r"var\((--\w+)\)", lambda found: values[found[1]], "".join(rules))


def _cut(caption: str, width: int) -> str:
    most = int((width - 32) / 6.6)
    return caption if len(caption) <= most else f"{caption[: most - 1]}…"
