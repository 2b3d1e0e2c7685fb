"""A survey as one HTML file that needs nothing else: no script, no font, no image from anywhere.

Everything that comes from documents, file names or tokenizers passes through `shown`, which leaves no character that
could end a tag, turn the direction of the page or hide. A policy in the head forbids scripts and loading besides.
"""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.files import publish_bytes
from data_prep.harmless import plain, shown
from data_prep.inspection import plots
from data_prep.inspection.console import piece_name, size
from data_prep.inspection.corpus import Excerpt
from data_prep.inspection.style import STYLE
from data_prep.inspection.survey import Survey, quantile
from data_prep.inspection.tokenizer_report import TokenizerReport

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
BLOCK = "<section>\n<h2>{}</h2>\n{}\n</section>"


def write_page(path: Path, survey: Survey, reports: Sequence[TokenizerReport] = ()) -> None:
    """Publishes the page whole. Raises DataError as `published` does."""
    publish_bytes(Path(path), page(survey, reports).encode())


def page(survey: Survey, reports: Sequence[TokenizerReport] = ()) -> str:
    sections = [
        ("What was asked for", _excerpts(survey.found, is_open=True)),
        ("What it is made of", _shares(survey)),
        ("How long its documents are", _lengths(survey)),
        ("What became of the documents", _losses(survey)),
        ("How its vocabulary is used", _vocabulary(survey)),
        ("How the tokenizer fits", _reports(reports)),
        ("Documents drawn at random", _excerpts(survey.drawn, is_open=True)),
        ("Longest and shortest", _excerpts((*survey.longest, *survey.shortest), is_open=False)),
        ("Where it comes from", _facts(survey)),
    ]
    body = [BLOCK.format(title, content) for title, content in sections if content]
    return "\n".join([*_head(survey), *body, "</main></body></html>", ""])


def _hint(text: str) -> str:
    """For attributes, which hold no tags."""
    return html.escape(plain(text))


def _head(survey: Survey) -> list[str]:
    name = shown(survey.name)
    total, val = survey.total("tokens"), survey.total("tokens", split="val")
    tiles = (
        (plots.short(total, 3), "tokens", f"{total:,}"),
        (plots.short(survey.total("documents"), 3), "documents", f"{survey.total('documents'):,}"),
        (size(survey.total("text_bytes")), "of text", f"{survey.total('text_bytes'):,} bytes"),
        (f"{_bytes_per_token(survey):.2f}", "bytes per token", "end-of-text not counted"),
        (f"{survey.manifest.vocab_size:,}", "ids", survey.manifest.dtype),
        (f"{100 * val / max(1, total):.2g} %", "held out", f"{val:,} tokens"),
    )
    cells = [f'<div title="{hint}"><b>{shown(value)}</b><span>{label}</span></div>' for value, label, hint in tiles]
    return [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_hint(survey.name)}: what is in it</title>\n<style>{STYLE}</style></head><body><main>",
        f"<h1>{name}</h1>\n<p class='lead'>{_sentence(survey)}</p>",
        f'<div class="tiles">{"".join(cells)}</div>',
    ]


def _sentence(survey: Survey) -> str:
    sources = survey.sources
    left_out = sum(map(survey.left_out, sources))
    documents = survey.total("documents")
    share = 100 * left_out / max(1, documents + left_out)
    lost = (
        f"{left_out:,} documents ({share:.2g} %) were left out, with a reason each" if left_out else "nothing left out"
    )
    largest = shown(sources[0]) if sources else "nothing"
    mixed = (
        f"{len(sources)} sources, <b>{largest}</b> the largest" if len(sources) > 1 else f"One source, <b>{largest}</b>"
    )
    return f"{mixed}; half of its documents have no more than {quantile(survey.histogram(), 0.5):,} tokens; {lost}."


def _bytes_per_token(survey: Survey) -> float:
    return survey.total("text_bytes") / max(1, survey.total("tokens") - survey.total("documents"))


# --- sections --------------------------------------------------------------------------------------------------------


def _colour(i: int) -> str:
    return f"c{min(i, plots.N_COLOURS - 1)}"


def _shares(survey: Survey) -> str:
    total = max(1, survey.total("tokens"))
    bar, rows = [], []
    for i, source in enumerate(survey.sources):
        tokens, documents = survey.total("tokens", source), survey.total("documents", source)
        text_bytes = survey.total("text_bytes", source)
        share = 100 * tokens / total
        bar.append(
            f'<span class="{_colour(i)}" style="width:{share:.3f}%" title="{_hint(source)}: {share:.2f} %"></span>'
        )
        rows.append(
            [
                f'<i class="dot {_colour(i)}"></i><bdi>{shown(source)}</bdi>',
                f"{share:.2f} %",
                f"{tokens:,}",
                f"{documents:,}",
                size(text_bytes),
                f"{text_bytes / max(1, tokens - documents):.2f}",
                f"{survey.total('tokens', source, 'val'):,}",
                *(f"{quantile(survey.histogram(source), at):,}" for at in (0.05, 0.5, 0.95)),
            ]
        )
    head = [
        "source",
        "share",
        "tokens",
        "documents",
        "text",
        "bytes per token",
        "held-out tokens",
        "5 % below",
        "half below",
        "95 % below",
    ]
    note = "<p class='note'>The last three columns: tokens per document, right to about 19 %.</p>"
    return f'<div class="bar">{"".join(bar)}</div>{_table(head, rows)}{note}'


def _lengths(survey: Survey) -> str:
    if not survey.parts:
        return ""
    pictures = (
        ("histogram", "documents", "Documents, by their length"),
        ("token_histogram", "tokens", "Tokens, by the length of the document they are in"),
    )
    figures: list[str] = []
    for what, unit, caption in pictures:
        rows = _merged([(source, survey.histogram(source, what)) for source in survey.sources])
        drawing = plots.lengths(caption, unit, rows, quantile(survey.histogram(None, what), 0.5))
        figures.append(f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="two">{"".join(figures)}</div>'


def _merged(rows: list[tuple[str, npt.NDArray[np.int64]]]) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Sources without a colour of their own, the smallest, as one."""
    own, others = rows[: plots.N_COLOURS - 1], rows[plots.N_COLOURS - 1 :]
    return [*own, (f"{len(others)} others", np.sum([row for _, row in others], axis=0))] if others else own


def _losses(survey: Survey) -> str:
    rows = []
    for source in survey.sources:
        kept, lost = survey.total("documents", source), survey.losses.get(source, {})
        total = kept + sum(lost.values())
        rows.append([f"<bdi>{shown(source)}</bdi>", "kept", f"{kept:,}", _meter(kept, total, "kept")])
        for reason, n in sorted(lost.items(), key=lambda item: -item[1]):
            rows.append(["", shown(reason), f"{n:,}", _meter(n, total, "lost")])
    return _table(["source", "fate", "documents", "of all that came in"], rows, left=(0, 1, 3)) if rows else ""


def _meter(n: int, total: int, kind: str) -> str:
    share = 100 * n / max(1, total)
    return f'<span class="meter"><span class="{kind}" style="width:{share:.3f}%"></span></span> {share:.2f} %'


def _excerpts(excerpts: Sequence[Excerpt], is_open: bool) -> str:
    return "\n".join(_excerpt(excerpt, is_open) for excerpt in excerpts)


def _excerpt(excerpt: Excerpt, is_open: bool) -> str:
    marked = f"<mark>{shown(piece_name(excerpt.marked))}</mark>" if excerpt.marked else ""
    place = f" · token {excerpt.position:,} of it is marked" if excerpt.marked else ""
    origin = shown(" or ".join(excerpt.origins)) or "unknown"
    # the newline after <pre> is one that HTML drops, so that one at the beginning of the text stays
    return (
        f"<details{' open' if is_open else ''}>"
        f"<summary><b>{excerpt.tokens:,} tokens</b> · <bdi>{origin}</bdi></summary>"
        f'<pre dir="auto">\n{"… " if excerpt.cut_before else ""}{shown(excerpt.before)}{marked}'
        f"{shown(excerpt.after)}{' …' if excerpt.cut_after else ''}</pre>"
        f"<p class='note'><bdi>{shown(excerpt.source)}</bdi> · {excerpt.split} · document={shown(excerpt.shard)}:"
        f"{excerpt.document} · offset={excerpt.split}:{excerpt.offset + excerpt.position}{place}</p></details>"
    )


def _vocabulary(survey: Survey) -> str:
    used = survey.vocabulary
    curve = plots.frequencies("Share of each id, by rank", used.counts, used.half)
    sample = "the whole train split" if used.is_whole else f"a drawn sample of {used.sampled_tokens:,} tokens"
    n_text = survey.manifest.vocab_size - used.textless
    share = 100 * used.unused / max(1, n_text)
    top = (f"<span>{_piece(u.piece)} {100 * u.count / max(1, used.sampled_tokens):.2f} %</span>" for u in used.top)
    return (
        f'<div class="two"><figure>{curve}<figcaption>Share of each id in {sample}</figcaption></figure>'
        f"<div><h3>Most frequent</h3><p class='pieces'>{' '.join(top)}</p><h3>Not there</h3>"
        f"<p>{used.unused:,} of {n_text:,} pieces ({share:.2g} %) and {used.unused_bytes} single bytes.</p>"
        f"<p class='pieces'>{' '.join(map(_piece, used.unused_examples))}</p></div></div>"
    )


def _piece(piece: str) -> str:
    return f"<code><bdi>{shown(piece_name(piece))}</bdi></code>"


def _reports(reports: Sequence[TokenizerReport]) -> str:
    rows = [
        [
            shown(report.name),
            f"{report.vocab_size:,}",
            f"<bdi>{shown(fit.source)}</bdi>",
            f"{fit.bytes_per_token:.3f}",
            f"{fit.fertility:.3f}",
            f"{100 * fit.byte_share:.2f} %",
            f"{fit.documents - fit.altered:,} of {fit.documents:,}",
            shown(", ".join(report.leaking)) or "none",
        ]
        for report in reports
        for fit in report.fits
    ]
    head = [
        "tokenizer",
        "ids",
        "source",
        "bytes per token",
        "tokens per word",
        "single bytes",
        "come back whole",
        "control ids from text",
    ]
    return _table(head, rows, left=(0, 2)) if rows else ""


def _facts(survey: Survey) -> str:
    manifest = survey.manifest
    options = ", ".join(f"{key}={value}" for key, value in manifest.options.items())
    rows = [
        ["dataset", f"<code>{manifest.fingerprint[:32]}</code>"],
        ["manifest", f"<code>{manifest.sha256[:32]}</code>, {len(manifest.shards):,} shards"],
        ["tokenizer", f"<code>{manifest.tokenizer_sha256[:32]}</code>, end-of-text id {manifest.eos_id}"],
        ["made with", shown(options)],
        *([shown(name.replace("_", " ")), f"{value:.4f}"] for name, value in manifest.baselines.items()),
    ]
    return _table([], rows, left=(0, 1))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> str:
    """Cells are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        parts = (f"<{tag}{' class=left' if i in left else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'
