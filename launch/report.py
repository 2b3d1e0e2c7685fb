"""`launch report`: a run as one page, whatever has become of it.

In: a run's folder. Out: an HTML file that needs nothing else, published whole: the verdict first, then curves, speed,
samples, the plan beside what came, attempts and incidents, configuration, environment, data. It can be made at any
time: of a run that goes on, was killed, or diverged. Files that are missing or damaged leave their sections out, and
are named.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.check import flatten
from conf.errors import ConfigError
from data_prep.files import DataError, publish_bytes
from data_prep.harmless import shown
from launch import report_charts as charts
from launch import words
from launch.again import differences
from launch.event_words import words as event_words
from launch.expected import Expected, expected
from launch.look_config import ReportConfig
from launch.page import details, figure_of, figures, page, pre, table, tiles
from launch.plan_table import STEP_PARTS
from launch.rows import Row, all_rows, figure
from launch.run_view import ALIVE, RunView, State
from launch.runs import Runs
from launch.status import stories_of
from launch.verdicts import Verdict, compared, verdicts
from train.history import USUAL, Story, read_events
from train.run_folder import config_of

_SAMPLES_BYTES, _SMALL_BYTES = 1 << 18, 1 << 20


def report(config: ReportConfig) -> int:
    if config.sweep is not None:
        from launch.sweep_report import write_sweep_report

        print("\n".join(write_sweep_report(Path(config.sweep))))
        return 0
    assert config.run is not None
    view = Runs(Path(config.folder)).one(config.run)
    if view.state == State.foreign:
        raise DataError(f"{view.path} is no run's folder: nothing can be told of it")
    target = Path(config.to) if config.to is not None else view.path / "report.html"
    publish_bytes(target, made(view).encode())
    print(f"{target}: {view.name}, {view.state}")
    return 0


def made(view: RunView) -> str:
    """The page."""
    rows = all_rows(view.path / "metrics.jsonl")
    stories, events = stories_of(view), read_events(view.path)
    plan, prediction, summary = (_json(view.path / f"{name}.json") for name in ("plan", "prediction", "summary"))
    planned = expected(plan, prediction)
    incidents = [event for event in events if event["event"] not in USUAL]
    found = verdicts(view, stories, rows, planned, summary, len(incidents))
    sections = [
        (
            "How it learnt",
            figure_of(charts.loss(rows, stories, summary), "Loss, nats per token; dotted: started again")
            + figures(charts.learning(rows, stories)),
        ),
        ("By source", figures(charts.sources(rows))),
        ("How fast it was", figures(charts.speed(rows, stories)) + _time(summary)),
        ("How the ranks differ", figures(charts.ranks(rows)) + _slowest(rows)),
        ("By layer", figures(charts.layers(rows))),
        ("Memory", figures(charts.memory(rows, planned.tensor_bytes))),
        ("What it writes", _samples(view.path / "samples.txt")),
        ("The plan, and what came", _plan(view, rows, planned, plan)),
        ("Attempts", _attempts(stories)),
        ("Incidents", _incidents(incidents)),
        ("Configuration", _configuration(view.path)),
        ("Environment", _environment(view, stories, summary)),
        ("Data", _data(view.path, summary)),
        ("About this page", _about(view)),
    ]
    return page(f"{view.name}: {view.state}", _head(view, rows, found), sections)


# --- the top ---------------------------------------------------------------------------------------------------------


def _head(view: RunView, rows: Sequence[Row], found: Sequence[Verdict]) -> list[str]:
    mood = "bad" if view.needs_a_person else "good" if view.state == State.finished or view.state in ALIVE else ""
    lines = (f'<p class="verdict {one.judgement}">{shown(one.text)}</p>' for one in found)
    return [
        f'<h1><bdi>{shown(view.name)}</bdi><span class="state {mood}">{view.state}</span></h1>',
        f'<div class="verdicts">{"".join(lines)}</div>',
        tiles(_tiles(view)),
    ]


def _tiles(view: RunView) -> list[tuple[str, str, str]]:
    found = [
        (words.number(view.tokens), "tokens seen", f"{view.tokens:,}" if view.tokens is not None else ""),
        (words.fixed(view.val_loss), "validation loss", "nats per token"),
        (words.fixed(view.bits_per_byte), "bits per byte", "of the validation text"),
        (words.number(view.tokens_per_second), "tokens/s", "median of the last steps, all devices"),
        (words.share(view.mfu), "MFU", "causal attention counted, median of the last steps"),
        (words.number(view.device_hours), "device-hours", "all attempts, start-up and idle time too"),
        (words.usd(view.cost_usd), "cost so far", "device-hours times the price given"),
    ]
    return [tile for tile in found if tile[0] != "-"]


# --- sections --------------------------------------------------------------------------------------------------------


def _time(summary: Mapping[str, Any]) -> str:
    hours = summary.get("device_hours")
    if not isinstance(hours, dict):
        return ""
    spent = {str(name): figure(hours, name) or 0.0 for name in hours}
    total = sum(spent.values())
    if not total > 0:
        return ""
    colours = {"train": 2, "eval": 0, "checkpoint": 1}
    bar, rows = [], []
    for name, value in spent.items():
        share, colour = 100 * value / total, f"c{colours.get(name, 7)}"
        bar.append(f'<span class="{colour}" style="width:{share:.3f}%"></span>')
        rows.append([f'<i class="dot {colour}"></i>{shown(name)}', f"{share:.1f} %", words.duration(value * 3600)])
    note = "<p class='note'>Time of all devices, as of the last summary.</p>"
    return f'<div class="bar">{"".join(bar)}</div>{table([], rows)}{note}'


def _slowest(rows: Sequence[Row]) -> str:
    found = [[str(rank), f"{n:,}", words.share(share)] for rank, n, share in charts.slowest_ranks(rows)]
    note = "<p class='note'>Those that had the longest work of their own most often; alike, they share it evenly.</p>"
    return table(["rank", "steps as the slowest", "share"], found) + (note if found else "")


def _samples(path: Path) -> str:
    text = _text(path, _SAMPLES_BYTES)
    parts = [part.strip("\n") for part in text.split("\n----\n")] if text.strip() else []
    return "".join(pre(part, "tall") for part in parts[:12])


def _plan(view: RunView, rows: Sequence[Row], planned: Expected, plan: Mapping[str, Any]) -> str:
    def cell(ratio: float | None) -> str:
        return "-" if ratio is None else f"{ratio:.2f} x"

    lines = [[shown(one.name), one.planned, one.came, cell(one.ratio)] for one in compared(view, rows, planned)]
    price = plan.get("price")
    rule = f"price: {price.get('rule')}, {price.get('date')}" if isinstance(price, dict) else ""
    how = f"its MFU was {planned.how}" if lines else ""
    masks = "the plan counts attention over whole rows, the run inside documents alone" if _masks(view.path) else ""
    note = "; ".join(part for part in (how, masks, rule, planned.remark) if part)
    table_of_all = table(["", "planned", "came", "ratio"], lines)
    return table_of_all + (f"<p class='note'>{shown(note)}</p>" if lines else "") + _parts(planned)


def _masks(run: Path) -> bool:
    try:
        return config_of(run).data.mask_documents
    except (DataError, ConfigError):
        return False


def _parts(planned: Expected) -> str:
    """Of the predicted step; nothing measures them one by one."""
    total = sum(planned.step_parts.values())
    rows = [
        [shown(STEP_PARTS.get(name, name)), f"{seconds:.3g} s", f"{seconds / total:.0%}"]
        for name, seconds in planned.step_parts.items()
    ]
    return details("the predicted step, by part", table([], rows)) if rows else ""


def _attempts(stories: Sequence[Story]) -> str:
    head = ["no.", "started (UTC)", "lasted", "host", "job", "ranks", "from", "to", "again", "how it ended"]
    rows = [
        [
            *(str(story.number), _clock(story.started), words.duration(story.seconds), _cell(story.host)),
            *(_cell(story.job), _cell(story.world_size), _cell(story.from_step), _cell(story.to_step)),
            *(_cell(story.repeated_steps), _cell(story.ending)),
        ]
        for story in stories
    ]
    return table(head, rows, left=(1, 3, 4, 9))


def _incidents(incidents: Sequence[dict[str, Any]]) -> str:
    rows = [
        [_clock(event["time"]), str(event["attempt"]), _cell(event.get("step")), shown(event_words(event))]
        for event in incidents[-200:]
    ]
    left_out = f"<p class='note'>{len(incidents) - 200} earlier ones are in events.jsonl</p>" if incidents[200:] else ""
    return table(["when (UTC)", "attempt", "step", "what"], rows, left=(0, 3)) + left_out


def _configuration(run: Path) -> str:
    whole = _text(run / "config.yaml", _SMALL_BYTES)
    if not whole:
        return ""
    try:
        changed = [
            [
                f"<code>{shown(key)}</code>",
                f"<code>{shown(_short(value))}</code>",
                f"<code>{shown(_short(usual))}</code>",
            ]
            for key, value, usual in differences(config_of(run))
            if key not in ("run.name", "run.folder")
        ]
        first = table(["key", "in this run", "default"], changed, left=(0, 1, 2))
    except (DataError, ConfigError) as error:
        first = f"<p class='note'>It cannot be compared with the defaults: {shown(str(error))}</p>"
    return first + details("all of config.yaml", pre(whole, "tall"))


def _environment(view: RunView, stories: Sequence[Story], summary: Mapping[str, Any]) -> str:
    newest = view.path / "attempts" / f"{stories[-1].number:04d}" / "environment.json" if stories else None
    held = _json(newest) if newest is not None else {}
    told = {key: summary[key] for key in ("device", "n_devices", "git", "versions") if key in summary}
    rows = [[f"<code>{shown(key)}</code>", shown(_short(value))] for key, value in flatten(told).items()]
    more = [[f"<code>{shown(key)}</code>", shown(_short(value))] for key, value in flatten(held).items()]
    all_of_it = details(f"as attempt {stories[-1].number} found it", table([], more, left=(0, 1))) if more else ""
    return table([], rows, left=(0, 1)) + all_of_it


def _data(run: Path, summary: Mapping[str, Any]) -> str:
    sources = summary.get("sources")
    rows = [
        [
            f"<bdi>{shown(name)}</bdi>",
            words.number(figure(facts, "tokens")),
            words.number(figure(facts, "tokens_seen")),
            words.number(figure(facts, "epochs")),
            f"<code>{shown(str(facts.get('digest', '-'))[:32])}</code>",
        ]
        for name, facts in (sources.items() if isinstance(sources, dict) else ())
        if isinstance(facts, dict)
    ]
    facts = flatten({"data": summary["data"]}) if isinstance(summary.get("data"), dict) else {}
    facts |= {key: summary[key] for key in ("unique_tokens", "epochs", "seed") if key in summary}
    more = [[f"<code>{shown(key)}</code>", shown(_short(value))] for key, value in facts.items()]
    head = ["source", "tokens", "seen", "epochs", "digest"]
    return table(head, rows, left=(0, 4)) + table([], more, left=(0, 1)) + _datasets(run)


def _datasets(run: Path) -> str:
    """What the manifests say that are still where the configuration names them."""
    try:
        mixture = config_of(run).data.mixture
    except (DataError, ConfigError):
        return ""
    rows: list[list[str]] = []
    for source in mixture.values():
        manifest = _json(Path(source.folder) / "manifest.json")
        facts = flatten({key: value for key, value in manifest.items() if not isinstance(value, list)})
        rows += [[f"<code>{shown(key)}</code>", shown(_short(value))] for key, value in list(facts.items())[:60]]
    return details("the dataset's manifest", table([], rows, left=(0, 1))) if rows else ""


def _about(view: RunView) -> str:
    lines = [f"Made {_clock(datetime.now(UTC).timestamp())} UTC from {view.path}, while the run was {view.state}."]
    lines += [f"Not read: {problem}." for problem in view.problems]
    return "".join(f"<p class='note'>{shown(line)}</p>" for line in lines)


# --- files -----------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    """{} where there is none that can be read."""
    try:
        found = json.loads(_text(path, 64 * _SMALL_BYTES))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path, most: int) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(most).decode(errors="replace")
    except OSError:
        return ""


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _cell(fact: object) -> str:
    return "-" if fact is None else shown(str(fact))


def _short(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
