"""Best-fit packing: every prediction in exactly one row, rows nearly full, packs whole or refused."""

import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import train.packing
from data_prep.files import DataError, exclusive
from tests.train.sources import corpus_of
from train.packing import Pack, best_fit, build, pack_folder, pieces_of
from train.rows import Packs


def lengths_like_text(n: int, seed: int = 0, median: float = 30) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 1.1, n)
    return np.clip(drawn, 1, None).astype(np.int32)


def best_fit_by_hand(lengths: list[int], capacity: int) -> list[int]:
    """The row of each item by best-fit decreasing, by looking at every open row for every item: into the fullest with
    room, among those into the one that was filled so far last."""
    rooms: list[int] = []
    filled: list[int] = []
    found = [0] * len(lengths)
    for turn, item in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[item]]
        row = min(fitting, key=lambda row: (rooms[row], -filled[row]), default=len(rooms))
        if row == len(rooms):
            rooms.append(capacity)
            filled.append(turn)
        rooms[row] -= lengths[item]
        filled[row], found[item] = turn, row
    return found


@pytest.mark.parametrize("capacity", [2, 10, 64, 257, 511, 512, 513, 2048, 5000])
def test_rows_are_those_of_best_fit_decreasing(capacity: int):
    lengths = np.minimum(lengths_like_text(500, median=capacity / 8 + 2), capacity)
    rows, n_rows = best_fit(lengths, capacity)
    assert np.bincount(rows, weights=lengths, minlength=n_rows).max() <= capacity
    assert set(rows.tolist()) == set(range(n_rows))
    assert rows.tolist() == best_fit_by_hand(lengths.tolist(), capacity)


def test_a_long_document_is_cut_so_that_no_prediction_is_lost():
    starts, pairs = pieces_of(100, np.array([5, 1, 2, 12], np.int32), 4)
    # 4 pairs; none; 1 pair; 11 pairs in pieces that begin with the id that the piece before them ends with
    assert list(zip(starts.tolist(), pairs.tolist(), strict=True)) == [(100, 4), (106, 1), (108, 4), (112, 4), (116, 3)]


@pytest.mark.parametrize("window", [7, 64, 65_536])
def test_every_prediction_of_every_document_is_in_exactly_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
):
    monkeypatch.setattr(train.packing, "WINDOW", window)
    documents = [lengths_like_text(n, seed=n).tolist() for n in (1, 90, 150, 40)]
    corpus = corpus_of(tmp_path, "a", documents)
    pack = Packs(None, say=lambda _: None).of(corpus, 16)
    inputs: Counter[int] = Counter()
    for row in range(pack.n_rows):
        pieces = pack.pieces(row, 0, 16)
        assert 1 <= sum(pairs for _, pairs in pieces) <= 16
        for position, pairs in pieces:
            inputs.update(range(position, position + pairs))
    expected, position = Counter[int](), 0
    for length in (length for shard in documents for length in shard):
        expected.update(range(position, position + length - 1))
        position += length
    assert inputs == expected


def test_the_places_of_a_document_are_where_its_pieces_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train.packing, "WINDOW", 16)
    lengths = lengths_like_text(200).tolist()
    pack = Packs(None, say=lambda _: None).of(corpus_of(tmp_path, "a", [lengths]), 20)
    at = {}
    for row in range(pack.n_rows):
        place = 0
        for position, pairs in pack.pieces(row, 0, 20):
            at |= {position + i: row * 20 + place + i for i in range(pairs)}
            place += pairs
    position = 0
    for length in lengths:
        found = {p + i: slot + i for p, slot, pairs in pack.places(position, length - 1) for i in range(pairs)}
        assert found == {p: at[p] for p in range(position, position + length - 1)}
        position += length


def test_a_part_of_a_row_is_the_same_pieces_cut(tmp_path: Path):
    pack = Packs(None, say=lambda _: None).of(corpus_of(tmp_path, "a", [[5, 6, 3, 4, 9, 2]]), 12)
    for row in range(pack.n_rows):
        whole = [p + i for p, n in pack.pieces(row, 0, 12) for i in range(n)]
        parts = [p + i for at in range(0, 12, 5) for p, n in pack.pieces(row, at, at + 5) for i in range(n)]
        assert parts == whole


@pytest.mark.parametrize("name", ["rows.bin", "starts.bin", "pairs.bin", "windows.bin", "blocks.crc", "pack.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_pack_is_made_anew(tmp_path: Path, name: str, damage: str):
    corpus, said = corpus_of(tmp_path, "a", [[5, 6, 3, 4, 9, 2]]), []
    Packs(None, say=said.append).of(corpus, 12)
    (folder,) = (tmp_path / "a" / "packs").glob("[!.]*")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    content = bytearray(before[name])
    content[0] ^= 1
    match damage:
        case "flipped":
            (folder / name).write_bytes(content)
        case "truncated":
            (folder / name).write_bytes(content[:-3])
        case _:
            (folder / name).unlink()
    again = Packs(None, say=said.append).of(corpus, 12)
    assert again.n_rows == len(before["rows.bin"]) // 8 - 1
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert (name == "pack.json" and damage == "missing") or any("warning" in message for message in said)


def test_a_pack_is_found_by_what_the_shards_hold_and_made_once(tmp_path: Path):
    corpus, said = corpus_of(tmp_path, "a", [[5, 6, 3]]), []
    Packs(str(tmp_path / "packs"), say=said.append).of(corpus, 12)
    assert len(said) == 2
    copied = corpus_of(tmp_path, "b", [[5, 6, 3]])
    Packs(str(tmp_path / "packs"), say=said.append).of(copied, 12)
    assert len(said) == 2


def test_a_place_that_cannot_be_written_is_named_with_the_key_to_turn(tmp_path: Path):
    corpus = corpus_of(tmp_path, "a", [[5, 6, 3]])
    with pytest.raises(DataError, match=r"/sys/packs.*data\.pack_folder"):
        Packs("/sys/packs", say=lambda _: None).of(corpus, 12)


def test_a_killed_build_leaves_no_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = corpus_of(tmp_path, "a", [[5, 6, 3]])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.packing, "best_fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "p", corpus.stream("train"), corpus.digest, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileNotFoundError):
        Pack.open(tmp_path / "p", corpus.digest, 12, verify=True)


def test_packing_keeps_up(tmp_path: Path):
    """500 000 documents a second on one idle core; a fifth of that is asked for here, in CPU seconds."""
    lengths = lengths_like_text(200_000, median=400)
    started = time.process_time()
    _, pairs = pieces_of(0, lengths, 2048)
    rows = sum(best_fit(pairs[i : i + 65_536], 2048)[1] for i in range(0, len(pairs), 65_536))
    rate = len(lengths) / (time.process_time() - started)
    assert rate > 100_000
    assert pairs.sum() / (rows * 2048) > 0.999


def test_packing_keeps_up_with_long_rows():
    """Time and memory hardly grow with T: rows 16 times as long, the same documents. A search of every open row for
    each document, which this guards against, would take hundreds of times longer; shared cores make 10 necessary."""
    lengths = lengths_like_text(65_536, median=700)

    def seconds(seq_len: int) -> float:
        _, pairs = pieces_of(0, lengths, seq_len)
        started = time.process_time()
        best_fit(pairs, seq_len)
        return time.process_time() - started

    assert min(seconds(131_072) for _ in range(3)) < 10 * min(seconds(8192) for _ in range(3))
    tracemalloc.start()
    best_fit(pieces_of(0, lengths[:2000], 131_072)[1], 131_072)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_other_processes_wait_for_the_one_that_packs(tmp_path: Path):
    corpus = corpus_of(tmp_path, "a", [[5, 6, 3]])
    waiting, found = Packs(None, makes=False), []
    thread = threading.Thread(target=lambda: found.append(waiting.of(corpus, 12)))
    thread.start()
    made = Packs(None, say=lambda _: None).of(corpus, 12)
    thread.join(timeout=30)
    assert [pack.facts for pack in found] == [made.facts]


def test_one_that_waits_says_for_what(tmp_path: Path):
    corpus, said = corpus_of(tmp_path, "a", [[5, 6, 3]]), []
    waiting = Packs(None, makes=False, say=said.append, patience=0.2)
    thread = threading.Thread(target=lambda: waiting.of(corpus, 12))
    thread.start()
    while len(said) < 2:
        time.sleep(0.01)
    Packs(None, say=lambda _: None).of(corpus, 12)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert all("waiting for the first process to make" in message for message in said)


def test_one_that_waits_gives_up_a_pack_that_stays_damaged(tmp_path: Path):
    corpus, said = corpus_of(tmp_path, "a", [[5, 6, 3]]), []
    Packs(None, say=said.append).of(corpus, 12)
    (folder,) = (tmp_path / "a" / "packs").glob("[!.]*")
    (folder / "rows.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"rows\.bin is truncated: expected \d+ bytes, found 0"):
        Packs(None, makes=False, say=said.append, patience=0.2).of(corpus, 12)
    assert "waiting for the first process to mend" in said[2]


def test_two_jobs_make_a_pack_once(tmp_path: Path):
    corpus, said = corpus_of(tmp_path, "a", [[5, 6, 3]]), []
    base = tmp_path / "packs"
    folder = pack_folder(base, corpus.digest, 12)
    threads = [threading.Thread(target=lambda: Packs(str(base), say=said.append).of(corpus, 12)) for _ in range(2)]
    with exclusive(base, "", name=f".{folder.name}.lock"):
        for thread in threads:
            thread.start()
        while len(said) < 2:
            time.sleep(0.01)
        assert not folder.exists()
    for thread in threads:
        thread.join(timeout=30)
    assert ["another job is making" in message for message in said[:2]] == [True, True]
    assert sum(message.startswith("packed") for message in said) == 1


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path):
    corpus = corpus_of(tmp_path, "a", [[5, 6, 3]])
    folder = pack_folder(tmp_path / "packs", corpus.digest, 12)
    (tmp_path / "packs" / f".{folder.name}.tmp1").mkdir(parents=True)
    Packs(str(tmp_path / "packs"), say=lambda _: None).of(corpus, 12)
    assert {path.name for path in (tmp_path / "packs").iterdir()} == {folder.name, f".{folder.name}.lock"}


def test_a_pack_made_anew_by_the_first_process_is_opened_anew_by_the_others(tmp_path: Path):
    """They look at sizes only, so they may have opened one that the first process then finds to be altered."""
    corpus = corpus_of(tmp_path, "a", [[5, 6, 3, 4, 9, 2]])
    whole = Packs(None, say=lambda _: None).of(corpus, 12).pieces(0, 0, 12)
    (folder,) = (tmp_path / "a" / "packs").glob("[!.]*")
    starts = np.fromfile(folder / "starts.bin", "<i8")
    (starts + 1).tofile(folder / "starts.bin")
    other = Packs(None, makes=False, verify=False)
    with pytest.raises(DataError, match=r"starts\.bin was altered after it was written: between bytes 0 and \d+"):
        other.of(corpus, 12).pieces(0, 0, 12)
    Packs(None, say=lambda _: None).of(corpus, 12)
    assert other.of(corpus, 12).pieces(0, 0, 12) == whole
