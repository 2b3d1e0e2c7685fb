"""A page that needs nothing else: its head with a policy that forbids scripts and loading, sections, tables.

Cells and contents of sections are HTML already; whatever came from a file has passed through `shown`.
"""

from collections.abc import Sequence

from data_prep.harmless import plain, shown
from data_prep.inspection.style import STYLE
from launch.charts import CHART_STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MORE_STYLE = """
.verdict { margin: 0 0 6px; padding-left: 26px; position: relative; overflow-wrap: anywhere }
.verdict::before { content: "·"; position: absolute; left: 4px; font-weight: 700 }
.verdict.good::before { content: "✓"; color: var(--c2) } .verdict.bad::before { content: "✗"; color: var(--warn) }
.verdict.bad { color: var(--warn) } .verdicts { margin-bottom: 22px }
.state { display: inline-block; font-size: 14px; font-weight: 600; padding: 2px 10px; border-radius: 20px;
  border: 1px solid var(--line); vertical-align: 5px; margin-left: 10px }
.state.good { color: var(--c2); border-color: var(--c2) } .state.bad { color: #fff; background: var(--warn) }
@media (prefers-color-scheme: dark) { .state.bad { color: #141517 } }
.tiles { grid-template-columns: repeat(auto-fit, minmax(126px, 1fr)) }
.two.alone { max-width: 540px }
td.left { max-width: 46em } figcaption { margin: 2px 0 12px } pre.tall { max-height: 520px }
"""


def page(title: str, head: Sequence[str], sections: Sequence[tuple[str, str]], style: str = "") -> str:
    """sections: (title, content); those without content are left out. style: rules beside the usual ones."""
    blocks = [f"<section>\n<h2>{shown(name)}</h2>\n{content}\n</section>" for name, content in sections if content]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{shown_plain(title)}</title>\n<style>{STYLE}{CHART_STYLE}{_MORE_STYLE}{style}</style></head><body><main>",
            *head,
            *blocks,
            "</main></body></html>",
            "",
        ]
    )


def shown_plain(text: str) -> str:
    """For places that hold no tags: titles and attributes."""
    import html

    return html.escape(plain(text))


def tiles(cells: Sequence[tuple[str, str, str]]) -> str:
    """(value, label, hint)"""
    found = (
        f'<div title="{shown_plain(hint)}"><b>{shown(value)}</b><span>{shown(label)}</span></div>'
        for value, label, hint in cells
    )
    return f'<div class="tiles">{"".join(found)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Cells are HTML; empty without rows."""
    if not rows:
        return ""

    def line(cells: Sequence[str], tag: str) -> str:
        parts = (f"<{tag}{' class=left' if i in left else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'


def figures(drawn: Sequence[tuple[str, str]]) -> str:
    """(SVG, caption), two beside each other; those without a drawing are left out."""
    found = [figure_of(svg, caption) for svg, caption in drawn if svg]
    alone = " alone" if len(found) == 1 else ""
    return f'<div class="two{alone}">{"".join(found)}</div>' if found else ""


def figure_of(svg: str, caption: str) -> str:
    """Over the whole width."""
    return f"<figure>{svg}<figcaption>{shown(caption)}</figcaption></figure>" if svg else ""


def details(summary: str, content: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{shown(summary)}</summary>{content}</details>"


def pre(text: str, kind: str = "") -> str:
    # the newline after <pre> is one that HTML drops, so that one at the beginning of the text stays
    return f'<pre dir="auto"{f" class={kind}" if kind else ""}>\n{shown(text)}</pre>'
