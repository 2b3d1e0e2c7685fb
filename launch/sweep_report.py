"""`launch report sweep=…`: a sweep as one page and its pictures as files, at any time.

In: a sweep's folder. Out: `report.html`, which needs nothing else and is published whole, and `pictures/`: the verdict
first (was the forecast sealed, scored, passed; the law; what it cost), then curves, law, frontier, residuals, cost and
cells. What cannot be shown yet is named with the reason, and so is every file that is damaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data_prep.files import DataError, publish_bytes
from data_prep.harmless import shown
from launch import sweep_charts as charts
from launch import sweep_more_charts as more
from launch import sweep_tables as tables
from launch import words
from launch.forecast_record import read_chain
from launch.page import page, table, tiles
from launch.pictures import Picture, publish_pictures
from launch.plot_layers import PLOT_STYLE
from launch.scaling.report import decay_text
from launch.sweep_folder import Sweep, curves, read_sweep
from launch.sweep_forecasts import Told, told_forecasts
from launch.sweep_law import LEAST_REPEATED, Findings, findings
from launch.sweep_verdicts import cells_verdict, progress, sweep_verdicts
from launch.verdicts import Verdict

_STYLE = """
.verdict-word.good { color: var(--c2) } .verdict-word.bad { color: var(--warn); font-weight: 600 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 10px 28px }
.plots > .whole { grid-column: 1 / -1 } .plots + div, .plots + p,
.wide + .wide, .note + .wide { margin-top: 16px }
figure { min-width: 0 }
"""


@dataclass(frozen=True)
class Section:
    title: str
    pictures: Sequence[Picture] = ()
    html: str = ""
    why: str = ""
    """why there is nothing to show, if there is nothing"""

    @property
    def is_empty(self) -> bool:
        return not self.html and not any(picture.svg for picture in self.pictures)


@dataclass(frozen=True)
class Content:
    """All that the page is made of."""

    sweep: Sweep
    found: Findings
    told: list[Told]
    sections: list[Section]


def write_sweep_report(folder: Path) -> list[str]:
    """Writes the page and the pictures; what there is to tell. Raises DataError if the folder is no sweep's or cannot
    be written."""
    content = gathered(folder)
    pictures = [picture for section in content.sections for picture in section.pictures]
    reason = publish_pictures(folder / "pictures", pictures)
    target = folder / "report.html"
    publish_bytes(target, _page(content, reason).encode())
    n_drawn = sum(bool(picture.svg) for picture in pictures)
    said = [f"{target}: {content.sweep.name}, {progress(content.sweep)}", f"{folder / 'pictures'}: {n_drawn} pictures"]
    return [*said, *([reason] if reason else []), *(f"not read: {what}" for what in content.sweep.damage)]


def made(folder: Path) -> str:
    """The page alone."""
    return _page(gathered(folder), "")


def gathered(folder: Path) -> Content:
    if not any((folder / name).exists() for name in ("plan.json", "runs", "ledger.jsonl")):
        raise DataError(
            f"{folder} is no sweep's folder: it has neither plan.json nor runs/ nor ledger.jsonl. `launch sweep` makes "
            "one below sweeps/; name it with sweep=sweeps/NAME"
        )
    sweep = read_sweep(folder)
    told, found = told_forecasts(folder, sweep.damage), findings(sweep)
    sweep.damage.extend(read_chain(folder)[1])
    sections = [*_first(sweep, found, told), *_of_law(found), *_last(sweep, found, told)]
    return Content(sweep, found, told, sections)


# --- sections --------------------------------------------------------------------------------------------------------


def _first(sweep: Sweep, found: Findings, told: Sequence[Told]) -> list[Section]:
    forecast = tables.scores(told) + (tables.skills(told[-1]) if told else "")
    lines = curves(sweep)
    return [
        Section("Forecast and outcome", [more.forecasts(told)], forecast, "no forecast is sealed yet"),
        Section("Loss against compute", [charts.loss_curves(sweep, lines, found)], "", "no run has a loss yet"),
    ]


def _of_law(found: Findings) -> list[Section]:
    """Those that need a law; each says what it lacks."""
    titles = ("The law", "The surface", "The frontier", "Loss against size at equal compute", "Residuals",
              "How sure the constants are", "Counted differently")  # fmt: skip
    analysis = found.analysis
    if analysis is None:
        return [Section(title, why=f"no law yet: {found.why}") for title in titles]
    shared = "no budget is shared by three runs of different size"
    return [
        Section(titles[0], html=tables.constants(found) + tables.estimators(analysis) + tables.families(found)),
        Section(titles[1], [charts.surface(found)]),
        Section(titles[2], charts.frontier(found), tables.held_out(found)),
        Section(titles[3], [charts.valleys(found)], tables.bottoms(analysis), shared),
        Section(titles[4], charts.residuals(found)),
        Section(titles[5], charts.profiles(found)),
        Section(titles[6], html=tables.countings(found)),
    ]


def _last(sweep: Sweep, found: Findings, told: Sequence[Told]) -> list[Section]:
    score = next((one.score for one in reversed(told) if one.score is not None and one.score.origins), None)
    origins = score.origins if score else []
    tried = more.tuned(sweep)
    edges = "; ".join(f"{one.what}: {edge}" for one in tried for edge in one.edges)
    edge_note = f"<p class='verdict bad'>{shown(edges)}: the optimum may lie beyond</p>" if edges else ""
    n_repeated = len(found.repeating)
    repeated = [more.repeated(found)] if n_repeated else []
    few = f"{n_repeated} rows repeat their text; half-lives need {LEAST_REPEATED} and a law of fresh text"
    decayed = tables.note(decay_text(found.decay, n_repeated) if found.decay else few) if n_repeated else ""
    fresh = "no usable row repeats its text"
    unscored = "no score holds a rolling origin yet"
    return [
        Section(
            "Rolling origin",
            [more.origins(origins)],
            tables.rolling(origins, score.left_out if score else []),
            unscored,
        ),
        Section(
            "Learning rate and batch",
            [more.rates(one, i) for i, one in enumerate(tried, 1)],
            edge_note,
            "no size was run with more than one learning rate or batch",
        ),
        Section("Repeated text", repeated, decayed, fresh),
        Section("Cost", [more.costs(sweep)], tables.totals(sweep) + tables.cost_table(sweep), "nothing is spent yet"),
        Section("Cells", html=tables.cells(sweep), why="there is neither a plan nor a run"),
        Section("Rows not used", html=tables.not_used(found.dropped), why="all rows are used"),
    ]


# --- the page --------------------------------------------------------------------------------------------------------


def _page(content: Content, no_images: str) -> str:
    sweep, found = content.sweep, content.found
    state = progress(sweep)
    lines = sweep_verdicts(sweep, found, content.told)
    mood = cells_verdict(sweep).judgement
    head = [
        f'<h1><bdi>{shown(sweep.name)}</bdi><span class="state {mood}">{state}</span></h1>',
        f'<div class="verdicts">{"".join(_line(one) for one in lines)}</div>',
        tiles(_tiles(content)),
    ]
    sections = [(section.title, _body(section)) for section in content.sections if not section.is_empty]
    missing = [[shown(s.title), shown(s.why)] for s in content.sections if s.is_empty]
    sections.append(("Not on this page", table([], missing, left=(0, 1))))
    sections.append(("About this page", _about(sweep, found, no_images)))
    return page(f"{sweep.name}: {state}", head, sections, PLOT_STYLE + _STYLE)


def _line(one: Verdict) -> str:
    return f'<p class="verdict {one.judgement}">{shown(one.text)}</p>'


def _body(section: Section) -> str:
    drawn = [_figure(one) for one in section.pictures if one.svg]
    return (f'<div class="plots">{"".join(drawn)}</div>' if drawn else "") + section.html


def _figure(one: Picture) -> str:
    whole = " whole" if one.is_whole else ""
    drawing = f'<div class="scroll{whole}">{one.svg}</div>'
    return f'<figure class="plot{whole}">{drawing}<figcaption>{shown(one.caption)}</figcaption></figure>'


def _tiles(content: Content) -> list[tuple[str, str, str]]:
    sweep, found = content.sweep, content.found
    score = next((one.score for one in reversed(content.told) if one.score), None)
    error = f"{score.relative_error:+.2%}" if score and score.relative_error is not None else "-"
    own = sum(cell.own_hours or 0.0 for cell in sweep.cells)
    usd = [cell.own_usd for cell in sweep.cells if cell.own_usd is not None]
    law = found.analysis
    losses = [row.loss for row in found.used]
    cells = [
        (error, "forecast error", "predicted over what came, less 1"),
        (str(len(found.used)), "rows in the law", f"{len(found.dropped)} are not used"),
        (words.fixed(min(losses, default=None), 4), "lowest loss", "of the rows used"),
        (
            f"{law.family.fit.error:.2%}" if law else "-",
            "mean error of the fit",
            "of |predicted over observed, less 1|",
        ),
        (words.duration(own * 3600) if own else "-", "device time", "what branches share is counted once"),
        (words.usd(sum(usd)) if usd else "-", "spent", "device time at the price of each run"),
    ]
    return [cell for cell in cells if cell[0] != "-"]


def _about(sweep: Sweep, found: Findings, no_images: str) -> str:
    choice = found.choice
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    rows = ", ".join(f"{key} {value}" for key, value in vars(choice.rows).items() if value is not None)
    lines = [
        f"Made {now} UTC from {sweep.path}{f', planned {sweep.written}' if sweep.written else ''}.",
        f"Settled beforehand: loss {choice.loss}, N counted as {choice.counting}, FLOPs {choice.flops}, Huber "
        f"{choice.delta:g}, {choice.resamples} resamples, rows: {rows}.",
        "Names of runs and values show where a mark is pointed at. Large metrics files are read in part: an even "
        "selection.",
        *([no_images[:1].upper() + no_images[1:] + "."] if no_images else []),
        *(f"Not read: {what}." for what in sweep.damage),
    ]
    return "".join(tables.note(line) for line in lines)
