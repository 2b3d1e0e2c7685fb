"""Where the frames of a Zstandard file begin, found by its headers alone (RFC 8878, sections 3.1.1 and 3.1.2).

In: an open file. Out: the offset of each frame, skippable ones included. A file in the seekable format (a table in a
last skippable frame; contrib/seekable_format of the zstd repository) is known from its end. Otherwise each block is
stepped over by its 3-byte header: some µs for each 128 KiB of text on a local disk, and on a remote one as much traffic
as reading the file.
"""

from collections.abc import Iterator

from data_prep.sources.stored import StoredFile

FRAME = 0xFD2FB528
SKIPPABLE = range(0x184D2A50, 0x184D2A60)
SEEK_TABLE = 0x184D2A5E
SEEKABLE = 0x8F92EAB1
FOOTER_BYTES = 9


def frame_starts(file: StoredFile, size: int) -> Iterator[int]:
    """Ascending, from 0 on. Ends without a word where the file does not go on as the RFC says: reading will tell."""
    return iter(_from_seek_table(file, size) or _from_headers(file, size))


# --- the seekable format ---------------------------------------------------------------------------------------------


def _from_seek_table(file: StoredFile, size: int) -> list[int]:
    """Starts by the table at the end of the file; empty if there is none, or if it does not fit the file."""
    footer = _at(file, max(0, size - FOOTER_BYTES), FOOTER_BYTES)
    if len(footer) < FOOTER_BYTES or _number(footer[5:]) != SEEKABLE:
        return []
    n_frames, entry_bytes = _number(footer[:4]), 12 if footer[4] & 0x80 else 8
    table = n_frames * entry_bytes + FOOTER_BYTES
    head = _at(file, max(0, size - table - 8), 8 + table)
    if len(head) < 8 + table or _number(head[:4]) != SEEK_TABLE or _number(head[4:8]) != table:
        return []
    starts = [0]
    for i in range(n_frames):
        starts.append(starts[-1] + _number(head[8 + i * entry_bytes :][:4]))
    return starts if starts[-1] == size - table - 8 else []


# --- walking ---------------------------------------------------------------------------------------------------------


def _from_headers(file: StoredFile, size: int) -> Iterator[int]:
    position: int | None = 0
    while position is not None and position < size:
        after = _after_frame(file, position)
        if after is None or after > size:
            return
        yield position
        position = after


def _after_frame(file: StoredFile, start: int) -> int | None:
    """One past the frame that begins at `start`; None if none does."""
    head = _at(file, start, 8)
    if len(head) == 8 and _number(head[:4]) in SKIPPABLE:
        return start + 8 + _number(head[4:])
    if len(head) < 8 or _number(head[:4]) != FRAME:
        return None
    descriptor = head[4]
    position: int | None = start + _header_bytes(descriptor)
    last = False
    while not last:
        last, position = _after_block(file, position)
        if position is None:
            return None
    return position + (4 if descriptor & 0b100 else 0)  # the content's checksum


def _header_bytes(descriptor: int) -> int:
    """Magic number, descriptor, window (unless a single segment), dictionary id, content size."""
    single = bool(descriptor & 0b10_0000)
    dictionary = (0, 1, 2, 4)[descriptor & 0b11]
    content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    return 5 + (0 if single else 1) + dictionary + content


def _after_block(file: StoredFile, start: int) -> tuple[bool, int | None]:
    """(it is the frame's last, one past the block or None if it is none)."""
    head = _at(file, start, 3)
    if len(head) < 3:
        return True, None
    number = _number(head)
    last, kind, size = bool(number & 1), number >> 1 & 0b11, number >> 3
    match kind:
        case 0 | 2:  # as it is, compressed
            return last, start + 3 + size
        case 1:  # one byte repeated
            return last, start + 4
        case _:
            return True, None


def _at(file: StoredFile, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _number(content: bytes) -> int:
    return int.from_bytes(content, "little")
