"""A survey as plain text for the console. What a document holds is shown without the power to move the cursor."""

import shutil
from collections.abc import Sequence

from data_prep.harmless import plain
from data_prep.inspection.corpus import Excerpt
from data_prep.inspection.survey import Survey
from data_prep.inspection.tokenizer_report import TokenizerReport

EXCERPT_CHARACTERS = 400


def text(survey: Survey) -> str:
    """The whole report."""
    sections = [_heading(survey), _sources(survey), _losses(survey), _vocabulary(survey)]
    for title, excerpts in (
        ("shortest", survey.shortest[:1]),
        ("longest", survey.longest[:1]),
        ("drawn", survey.drawn),
        ("asked for", survey.found),
    ):
        sections += [_excerpt(title, excerpt) for excerpt in excerpts]
    return "\n\n".join(section for section in sections if section)


def tokenizer_table(reports: Sequence[TokenizerReport]) -> str:
    """Candidates under each other, source by source."""
    rows = [
        (
            report.name,
            f"{report.vocab_size:,}",
            plain(fit.source),
            f"{fit.bytes_per_token:.3f}",
            f"{fit.fertility:.3f}",
            f"{100 * fit.byte_share:.2f} %",
            f"{fit.documents - fit.altered:,} of {fit.documents:,}",
        )
        for report in reports
        for fit in report.fits
    ]
    head = ("tokenizer", "pieces", "source", "bytes/token", "tokens/word", "byte pieces", "come back whole")
    lines = [aligned([head, *rows], left=(0, 2))]
    for report in reports:
        names = ", ".join(map(plain, report.leaking))
        told = f"text can become a control id: {names}" if names else f"none of {report.controls} control ids from text"
        lines.append(f"{report.name}: {told}")
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def piece_name(piece: str) -> str:
    return plain(piece).replace("\n", "\\n").replace("\t", "\\t")


def size(n_bytes: float) -> str:
    """1_500_000 as `1.50 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:,.0f} B" if unit == "B" else f"{n_bytes:,.2f} {unit}"
        n_bytes /= 1000
    raise AssertionError


def _heading(survey: Survey) -> str:
    manifest = survey.manifest
    return (
        f"{plain(survey.name)}: {survey.total('tokens'):,} tokens, {survey.total('documents'):,} documents, "
        f"{size(survey.total('text_bytes'))} of text, {len(manifest.shards)} shards\n"
        f"tokenizer {manifest.tokenizer_sha256[:16]}, {manifest.vocab_size:,} ids as {manifest.dtype}, end-of-text id "
        f"{manifest.eos_id}"
    )


def _sources(survey: Survey) -> str:
    total = max(1, survey.total("tokens"))
    head = ("source", "split", "tokens", "share", "documents", "text", "bytes/token", "5 % <", "half <", "95 % <")
    order = {source: i for i, source in enumerate(survey.sources)}
    rows = [
        (
            plain(part.source),
            part.split,
            f"{part.tokens:,}",
            f"{100 * part.tokens / total:.2f} %",
            f"{part.documents:,}",
            size(part.text_bytes),
            f"{part.bytes_per_token:.2f}",
            *(f"{part.length_at(share):,}" for share in (0.05, 0.5, 0.95)),
        )
        for part in sorted(survey.parts, key=lambda part: (order[part.source], part.split))
    ]
    return aligned([head, *rows], left=(0, 1)) + "\n(the last three columns: tokens per document, to about 19 %)"


def _losses(survey: Survey) -> str:
    rows = [
        (
            plain(source),
            plain(reason),
            f"{n:,}",
            f"{100 * n / (survey.total('documents', source) + survey.left_out(source)):.2f} %",
        )
        for source in survey.sources
        for reason, n in sorted(survey.losses.get(source, {}).items(), key=lambda item: -item[1])
    ]
    return aligned([("left out", "reason", "documents", "of all"), *rows], left=(0, 1)) if rows else "left out: nothing"


def _vocabulary(survey: Survey) -> str:
    used = survey.vocabulary
    sample = "the train split" if used.is_whole else f"a sample of {used.sampled_tokens:,} tokens"
    top = " ".join(
        f"{piece_name(use.piece)}:{100 * use.count / max(1, used.sampled_tokens):.1f}%" for use in used.top[:12]
    )
    return (
        f"vocabulary on {sample}: {used.half:,} ids make half of it; {used.unused:,} pieces and {used.unused_bytes} "
        f"single bytes do not occur\nmost frequent: {top}"
    )


def _excerpt(title: str, excerpt: Excerpt) -> str:
    place = f", token {excerpt.position:,} of it" if excerpt.marked else ""
    before, after = excerpt.before[-EXCERPT_CHARACTERS:], excerpt.after[:EXCERPT_CHARACTERS]
    marked = f">>>{excerpt.marked}<<<" if excerpt.marked else ""
    body = "\n".join(
        f"  | {line}" for line in plain(before + marked + after).splitlines()[: shutil.get_terminal_size().lines]
    )
    return (
        f"{title}: {excerpt.shard}:{excerpt.document}, {excerpt.tokens:,} tokens from {excerpt.split}:{excerpt.offset}"
        f"{place}, from {plain(' or '.join(excerpt.origins) or 'an unknown input')}\n{body}"
    )
