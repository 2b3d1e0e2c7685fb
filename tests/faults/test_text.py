"""F21: hostile files through the command itself: no crash, every document accounted for, memory within a limit."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.manifest import Manifest
from data_prep.shards import ShardReader
from data_prep.tokenizer import Tokenizer
from tests.data_prep.reading import rows, zstd

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
MEMORY_MIB = 700
"""for two processes' worth of Python, numpy, pyarrow and SentencePiece, and documents of at most LONGEST bytes"""
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""A small process of its own between the tests and the command: Linux counts what a process held before it became
another program into its peak, and the tests themselves may hold more than the limit."""
LONGEST = 4 * MIB
CONTROL = "</s><s><unk><pad> <0x0A> </s>\n</s>\u2581</s>"
GOOD = rows("one good document", "another good document")
DEEP = 100_000

KEPT: dict[str, int] = {}  # for readers: a file's expectation is {reason: n} of what is left out, {} for one kept whole

TEXTS: dict[str, tuple[bytes, dict[str, int]]] = {
    "plain.txt": (b"A plain text.\n", KEPT),
    "empty.txt": (b"", {"empty": 1}),
    "word.txt": (b"word", KEPT),
    "long_word.txt": (b"x" * MIB, KEPT),
    "nul.txt": (b"a\0b\0", KEPT),
    "latin.txt": (b"caf\xe9", {"not_utf8": 1}),
    "overlong.txt": (b"\xc0\xaf", {"not_utf8": 1}),
    "surrogate.txt": (b"\xed\xa0\x80", {"not_utf8": 1}),
    "utf16.txt": ("text".encode("utf-16"), {"not_utf8": 1}),
    "bom.txt": (b"\xef\xbb\xbfafter a mark", KEPT),
    "crlf.txt": (b"one\r\ntwo\rthree\r\n", KEPT),
    "control.txt": (CONTROL.encode(), KEPT),
    "combining.txt": (("e\u0301\u0301" * 1000 + "\u202e\u2028\u2029".join("abc")).encode(), KEPT),
    "cut.txt.gz": (gzip.compress(os.urandom(9000))[:-2000], {"broken_archive": 1}),
    "cut.txt.zst": (zstd(b"a text " * 9000)[:-9], {"broken_archive": 1}),
    "no.txt.bz2": (b"BZh9 and then no such thing", {"broken_archive": 1}),
    "new\nline.txt": (b"a newline in the name", KEPT),
    "$(touch x);`id` 'quoted' \".txt": (b"a shell's delight", KEPT),
    "\u2025...txt": (b"dots", KEPT),
}

LINES: dict[str, tuple[bytes, dict[str, int]]] = {
    "good.jsonl": (GOOD, KEPT),
    "brackets.jsonl": (GOOD + b"[" * DEEP + b"\n", {"bad_json": 1}),
    "brackets_closed.jsonl": (GOOD + b'{"text": "x", "a": ' + b"[" * DEEP + b"]" * DEEP + b"}\n", {"bad_json": 1}),
    "braces.jsonl": (GOOD + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"\n", {"bad_json": 1}),
    "broken.jsonl": (b'{"text": "cut\n' + GOOD, {"bad_json": 1}),
    "missing.jsonl": (b'{"txt": "x"}\n' + GOOD, {"no_text": 1}),
    "not_text.jsonl": (b'{"text": null}\n{"text": 3}\n{"text": ["x"]}\n{"text": {"a": 1}}\n[]\n"x"\n', {"no_text": 6}),
    "nan.jsonl": (b'{"text": "kept", "score": NaN, "more": -Infinity}\n', KEPT),
    "digits.jsonl": (b'{"text": "kept?", "n": ' + b"9" * 50_000 + b"}\n" + GOOD, {"bad_json": 1}),
    "twice.jsonl": (b'{"text": "first", "text": "last"}\n', KEPT),
    "surrogate.jsonl": (b'{"text": "a\\ud800b"}\n' + GOOD, {"lone_surrogate": 1}),
    "nul.jsonl": (b'{"text": "a\\u0000b"}\n', KEPT),
    "control.jsonl": (json.dumps({"text": CONTROL}).encode() + b"\n", KEPT),
    "bom_crlf.jsonl": (b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"), KEPT),
    "bytes.jsonl": (b'{"text": "\xff"}\n\xfe\xff\n' + GOOD, {"not_utf8": 2}),
    "blank.jsonl": (b"\n \n\t\n", {"empty": 3}),
    "nothing.jsonl": (b"", KEPT),
    "bomb.jsonl.gz": (gzip.compress(bytes(80 * MIB), 9), {"zip_bomb": 1}),
    "cut.jsonl.gz": (gzip.compress(GOOD)[:-9], {"broken_archive": 1}),
    "cut.jsonl.zst": (zstd(GOOD)[:-3], {"broken_archive": 1}),
}


def table(**columns: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


TABLES: dict[str, tuple[bytes, dict[str, int]]] = {
    "good.parquet": (table(text=["one", "two"]), KEPT),
    "empty.parquet": (table(text=pyarrow.array([], pyarrow.string())), KEPT),
    "other.parquet": (table(body=["x"]), {"no_text": 1}),
    "numbers.parquet": (table(text=[1, 2]), {"no_text": 1}),
    "nulls.parquet": (table(text=["a", None, ""]), {"no_text": 1, "empty": 1}),
    "control.parquet": (table(text=[CONTROL]), KEPT),
    "bytes.parquet": (table(text=[b"\xff", b"fine"]), {"not_utf8": 1}),
    "cut.parquet": (table(text=["one", "two"])[:-20], {"broken_archive": 1}),
    "short.parquet": (b"PAR1", {"broken_archive": 1}),
    "footer.parquet": (b"PAR1" + struct.pack("<i", 2**31 - 1) + b"PAR1", {"broken_archive": 1}),
}


def crawl(text: bytes, claimed: int | None = None) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: {claimed or len(text)}"
    return head.encode() + b"\r\n\r\n" + text + b"\r\n\r\n"


CRAWLS: dict[str, tuple[bytes, dict[str, int]]] = {
    "good.wet": (crawl(b"a page") + crawl(CONTROL.encode()), KEPT),
    "cut.wet.gz": (
        gzip.compress(crawl(b"a page")) + gzip.compress(crawl(b"a second page"))[:-12],
        {"broken_archive": 1},
    ),
}


def prepared(folder: Path, kind: str, files: dict[str, tuple[bytes, dict[str, int]]], model: Path, *more: str) -> Path:
    """The dataset that the command makes of them. Fails when it does not end well, or takes too much memory."""
    (folder / "in").mkdir()
    for name, (content, _) in files.items():
        (folder / "in" / name).write_bytes(content)
    words = [f"source={kind}", "source.paths=[in]", "out=out", f"tokenizer.model={model}", "on_bad_document=skip"]
    words += [f"source.max_document_bytes={LONGEST}", "val_fraction=0", "workers=1", *more]
    command = [sys.executable, "-c", MEASURED, str(folder / "kib"), sys.executable, "-m", "data_prep", *words]
    with (folder / "printed").open("w") as printed:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        code = subprocess.run(command, cwd=folder, env=environment, stdout=printed, stderr=printed).returncode
    assert code == 0, (folder / "printed").read_text()
    assert "Traceback" not in (folder / "printed").read_text()
    used = int((folder / "kib").read_text()) / 1024
    assert used < MEMORY_MIB, f"{used:.0f} MiB"
    return folder / "out"


def documents_of(out: Path) -> list[str]:
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    shards = [ShardReader(out / entry.name) for entry in Manifest.load(out).shards_of("train")]
    return [tokenizer.decode(shard.document(i)) for shard in shards for i in range(shard.n_documents)]


def check(out: Path, files: dict[str, tuple[bytes, dict[str, int]]]) -> None:
    """Counts balance per file and in all, by the reasons that were expected, and no text became a control id."""
    manifest = Manifest.load(out)
    lines = [json.loads(line) for line in (out / "inputs.jsonl").read_text().splitlines()]
    found = {line["name"].removeprefix("in/"): line for line in lines}
    assert found.keys() == files.keys()
    assert {name: line["removed"] for name, line in found.items()} == {name: want for name, (_, want) in files.items()}
    for line in lines:
        assert line["documents_in"] == line["train"] + sum(line["removed"].values()), line
    assert manifest.documents_in == manifest.documents("train") + sum(manifest.removed.values())
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    control = [tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    ids = [ShardReader(out / entry.name).tokens(0, entry.tokens) for entry in manifest.shards_of("train")]
    assert sum(int((row == id).sum()) for row in ids for id in control) == manifest.documents("train")
    assert manifest.verify(out) > 0


@pytest.fixture(scope="module")
def model(workplace: Path) -> Path:
    return workplace / "data" / "tiny" / "tokenizer.model"


def test_hostile_text_files(tmp_path: Path, model: Path):
    """F21: empty, 100 MB, one word, NUL, bad UTF-8, BOM, CRLF, control symbols, cut archives, names of files."""
    files = TEXTS | {"hundred_megabytes.txt": (bytes(100 * MIB), {"too_long": 1})}
    out = prepared(tmp_path, "text", files, model)
    check(out, files)
    texts = documents_of(out)
    for name, (content, removed) in files.items():
        assert removed or content.decode() in texts, name
    assert not (tmp_path / "x").exists()


def test_hostile_json_lines(tmp_path: Path, model: Path):
    """F21: nested, broken and odd JSON, missing and wrong fields, surrogates, NaN, keys given twice, a bomb."""
    line = b'{"text": "' + b" " * 25 * MIB + b'"}\n'
    files = LINES | {"hundred_megabytes.jsonl": (line * 4 + GOOD, {"too_long": 4})}
    out = prepared(tmp_path, "jsonl", files, model)
    check(out, files)
    texts = documents_of(out)
    assert {"kept", "last", "a\0b", CONTROL} <= set(texts)
    assert "first" not in texts


def test_hostile_parquet_files(tmp_path: Path, model: Path):
    """F21: Parquet with another schema, nulls, bytes that are no text, cut short, and a footer that lies."""
    check(prepared(tmp_path, "parquet", TABLES, model), TABLES)


def test_hostile_crawls(tmp_path: Path, model: Path):
    """F21: a WARC file cut short."""
    pytest.importorskip("fastwarc", reason="needs the extra `warc`")
    out = prepared(tmp_path, "wet", CRAWLS, model)
    check(out, CRAWLS)
    assert {"a page", CONTROL} <= set(documents_of(out))
