"""Takes the pictures of docs/ anew, each of the real thing in a real browser.

    python docs/pictures.py             # in a temporary folder; five to ten minutes on two cores
    python docs/pictures.py build/      # what is there already (data, runs) is used again
    python docs/pictures.py build/ tensorboard    # only those whose names begin so
    python docs/pictures.py . sweep               # of sweeps/demo, which `make sweep` has left in this folder

In: this checkout, a Chromium on the PATH. Text becomes shards, small runs are trained: one that is killed and goes on,
one of two sources on two ranks, one that is lost, one that goes on while the picture of `launch watch` is taken. Then
TensorBoard, the reports, the dataset's page and the terminal are shown to the browser, on loopback only. Out:
docs/*.png.
"""

import contextlib
import html
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LARGEST_BYTES = 250_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TABS = {"timeseries": (1280, 900), "custom_scalars": (1280, 1260), "hparams": (1700, 420), "text": (1280, 900)}
DARK = "--blink-settings=preferredColorScheme=0"
COST = ("cluster.usd_per_device_hour=2.5", "cluster.price_rule=an example", "cluster.price_date=2026-11-01")
SOURCES = "data.sources={stdlib:{folder:data/stdlib,weight:0.7},notes:{folder:data/notes,weight:0.3,max_epochs:20}}"
SHOWN = ("By source", "How the ranks differ", "By layer", "Memory")
TERMINAL = (112, 11)


def main() -> None:
    words = sys.argv[1:]
    wanted = tuple(words[1:])
    with contextlib.ExitStack() as stack:
        work = Path(words[0] if words else stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        work.mkdir(parents=True, exist_ok=True)
        browser = Browser(work)
        if wanted != ("sweep",):
            runs(work)
        take(work, browser, wanted)


def take(work: Path, browser: "Browser", wanted: tuple[str, ...]) -> None:
    def asked(name: str) -> bool:
        return not wanted or name.startswith(wanted)

    if asked("watch"):
        shutil.rmtree(work / "runs/longer", ignore_errors=True)
        with training(work, "longer"):
            screen = terminal(work, "-m", "launch", "watch")
        (work / "watch.html").write_text(as_page(screen))
        browser.shoot("watch", (work / "watch.html").as_uri(), (TERMINAL[0] * 9 + 40, TERMINAL[1] * 20 + 36))
    if asked("report"):
        command(work, "launch", "report", "run=hello", "to=report.html")
        page = (work / "report.html").as_uri()
        browser.shoot("report", page, (1120, 1500))
        browser.shoot("report-dark", page, (1120, 1500), DARK)
        command(work, "launch", "report", "run=mixture", "to=mixture.html")
        (work / "mixture.html").write_text(only_sections((work / "mixture.html").read_text()))
        browser.shoot("report-mixture", (work / "mixture.html").as_uri(), (1120, 1820))
    if asked("inspect"):
        command(work, "data_prep", "out=data/stdlib", "stage=inspect", "inspect.page=inspect.html")
        browser.shoot("inspect", (work / "inspect.html").as_uri(), (1120, 1300))
    if asked("sweep") and (work / "sweeps/demo").is_dir():
        command(work, "launch", "report", "sweep=sweeps/demo")
        browser.shoot("sweep", (work / "sweeps/demo/report.html").as_uri(), (1120, 2300))
    tabs = {tab: size for tab, size in TABS.items() if asked(f"tensorboard-{tab}")}
    if tabs:
        with tensorboard(work) as address:
            for tab, size in tabs.items():
                browser.shoot(
                    f"tensorboard-{tab}", f"{address}/?forceSVG=true#{tab}", size, "--virtual-time-budget=25000"
                )


# --- what is shown ---------------------------------------------------------------------------------------------------


def runs(work: Path) -> None:
    if not (work / "data/stdlib/manifest.json").exists():
        command(work, "data_prep", "source=python_stdlib", "out=data/stdlib")
    if not (work / "data/notes/manifest.json").exists():
        texts = f"source.paths=[{ROOT}/*.md,{ROOT}/docs/*.md]"
        model = f"tokenizer.model={work}/data/stdlib/tokenizer.model"
        command(work, "data_prep", "source=text", texts, "out=data/notes", "val_fraction=0.43", model)
    if not (work / "runs/hello/summary.json").exists():
        with training(work, "hello", "total_tokens=614_400"):
            wait_for_step(work / "runs/hello", 130)
    if '"status": "finished"' not in (work / "runs/hello/summary.json").read_text():
        command(work, *words_of("hello", "total_tokens=614_400"))
    if not (work / "runs/mixture").exists():
        two = ("--standalone", "--nproc-per-node", "2", "-m", *words_of("mixture", "batch.micro_batch_size=2"))
        command(work, "torch.distributed.run", *two, "total_tokens=204_800", "data.folder=null", SOURCES)
    if not (work / "runs/killed").exists():
        with training(work, "killed", "optimizer.peak_lr=0.006"):
            wait_for_step(work / "runs/killed", 60)


def words_of(name: str, *words: str) -> tuple[str, ...]:
    often = ("checkpoint.every_steps=50", "evaluation.every_steps=25", "evaluation.max_sequences=64")
    often += ("sample.every_steps=100", "log.every_steps=5")
    return ("train", "experiment=debug", f"run.name={name}", *COST, *often, *words)


@contextlib.contextmanager
def training(work: Path, name: str, *words: str) -> Iterator[None]:
    """A run that goes on for the time of the block, and is then killed."""
    run = start(work, "-m", *words_of(name, *words), quiet=True)
    try:
        wait_for_step(work / "runs" / name, 20)
        yield
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def wait_for_step(run: Path, step: int) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if f'"step": {step},' in (run / "metrics.jsonl").read_text():
                return
        time.sleep(0.5)
    sys.exit(f"{run} did not come to step {step}")


def command(work: Path, module: str, *words: str) -> None:
    process = start(work, "-m", module, *words)
    if process.wait():
        sys.exit(f"python -m {module} {' '.join(words)} ended with {process.returncode}")


def start(work: Path, *words: str, quiet: bool = False) -> "subprocess.Popen[bytes]":
    output = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(
        [sys.executable, *words], cwd=work, env=environment(), stdout=output, start_new_session=True
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}


@contextlib.contextmanager
def tensorboard(work: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--logdir", "runs", "--host", "127.0.0.1", "--port", str(port))
    server = start(work, "-m", "tensorboard.main", *words, quiet=True)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/data/runs", timeout=5) as answer:
                if b"hello" in answer.read():
                    break
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def only_sections(page: str) -> str:
    """Of a report, those that a run of one source on one rank does not have, or not at its top."""
    head, *sections = page.split("<section>\n")
    tail = "</main></body></html>"
    kept = [
        section.removesuffix(tail)
        for section in sections
        if section.startswith(tuple(map("<h2>{}</h2>".format, SHOWN)))
    ]
    return "<section>\n".join([head.split('<div class="tiles">')[0], *kept]) + tail


# --- a terminal ------------------------------------------------------------------------------------------------------


def terminal(work: Path, *words: str) -> list[str]:
    """The last whole screen that a command draws within some seconds in a terminal of ours; then it gets its `q`."""
    columns, lines = TERMINAL
    child, master = pty.fork()
    if child == 0:
        os.chdir(work)
        os.execve(sys.executable, [sys.executable, *words], environment())
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    drawn = read_for(master, 12.0)
    os.write(master, b"q")
    read_for(master, 1.0)
    os.waitpid(child, 0)
    screens = drawn.decode(errors="replace").split("\033[H")
    whole = [screen for screen in screens if screen.endswith("\033[J")]
    return whole[-1].removesuffix("\033[J").split("\r\n")


def read_for(master: int, seconds: float) -> bytes:
    found, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            try:
                found += os.read(master, 1 << 16)
            except OSError:
                break
    return found


STYLE = {
    "1": "font-weight:700",
    "2": "color:#8b929e",
    "1;31": "color:#ff7b72;font-weight:700",
    "32": "color:#7ee787",
    "33": "color:#e3b341",
    "34": "color:#79c0ff",
    "36": "color:#56d4dd",
    "1;37;41": "color:#fff;background:#c93c37;font-weight:700",
}


def as_page(lines: list[str]) -> str:
    body = "\n".join(as_html(line) for line in lines)
    style = (
        "body{margin:0;background:#161b22}pre{margin:0;padding:16px 20px;color:#e6edf3;"
        "font:15px/20px 'DejaVu Sans Mono',monospace}"
    )
    return f"<!doctype html><meta charset='utf-8'><style>{style}</style><pre>{body}</pre>"


def as_html(line: str) -> str:
    text = re.sub(r"\033\[0m\033\[K", "", line)
    parts = re.split(r"\033\[([0-9;]*)m", text)
    found = [html.escape(parts[0])]
    for style, words in zip(parts[1::2], parts[2::2], strict=True):
        css = STYLE.get(style)
        found.append(f'<span style="{css}">{html.escape(words)}</span>' if css else html.escape(words))
    return "".join(found)


# --- the browser -----------------------------------------------------------------------------------------------------


class Browser:
    def __init__(self, work: Path):
        self._program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
        self._work = work
        if self._program is None:
            sys.exit(f"none of {', '.join(BROWSERS)} is on the PATH")

    def shoot(self, name: str, address: str, size: tuple[int, int], *flags: str) -> None:
        assert self._program is not None
        picture = self._work / f"{name}.png"
        usual = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
        place = (f"--user-data-dir={self._work / 'browser'}", f"--window-size={size[0]},{size[1]}")
        words = [self._program, *usual, *place, *flags, f"--screenshot={picture}", address]
        subprocess.run(words, check=True, capture_output=True, timeout=180)
        keep(picture, DOCS / f"{name}.png")


def keep(picture: Path, target: Path) -> None:
    """With as many colours as its size allows: text and lines lose nothing by it."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    for n_colours in (256, 128, 64, 32):
        image.quantize(n_colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size < LARGEST_BYTES:
            break
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
