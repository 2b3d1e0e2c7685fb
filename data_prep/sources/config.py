"""Where text comes from: one dataclass a format, chosen by `source=OPTION`; `SOURCES` maps the option to its class.

In: nothing. Out: the keys below `source.` of the command line. Only dataclasses: importing this costs nothing.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

MIB = 1 << 20
MAXIMUM_DOCUMENT_BYTES = 2**31 - 2
"""An index counts the tokens of a document in 31 bits: at most one a byte, and the end symbol."""

SECRET_IN_URL = re.compile(r"://[^/?#]*:[^/?#]*@|[?&][^=&]*(signature|token|secret|password|passwd|key|sig)=", re.I)
"""user:password@, or a signed request"""


class Delimiter(StrEnum):
    comma = "comma"
    semicolon = "semicolon"
    tab = "tab"
    pipe = "pipe"


class Checked:
    """Ends the chain of `problems()`: each part below adds its own to those of the parts after it."""

    def problems(self) -> list[str]:
        return []


@dataclass(kw_only=True)
class Limits(Checked):
    max_document_bytes: int = 256 * MIB
    """A document (with JSONL the whole line) of more bytes is left out as `too_long`, and never held in memory whole.
    A worker needs about ten times the bytes of its largest document: the record, its text, its UTF-8, its ids."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not 1 <= self.max_document_bytes <= MAXIMUM_DOCUMENT_BYTES:
            found.append(
                f"source.max_document_bytes={self.max_document_bytes} must lie in 1 ... {MAXIMUM_DOCUMENT_BYTES}: an "
                "index counts the tokens of a document in 31 bits"
            )
        return found


@dataclass(kw_only=True)
class Expansion(Checked):
    max_expansion: int = 200
    """Bytes that one stored byte may become, from 64 MiB of output on; a file beyond it is a `zip_bomb` and left at
    that point. Text shrinks 3 to 20 times; deflate can reach 1032, Zstandard and bzip2 more than 10 000."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.max_expansion < 2:
            found.append(f"source.max_expansion={self.max_expansion} must be at least 2; text reaches 20, try 200")
        return found


@dataclass
class Files(Limits):
    """What is found below `paths`."""

    paths: list[str]
    """Files, globs (`**` included), folders, or fsspec URLs of these (s3://, gs://, https://, ...). Each is a source of
    its own, called after its last part, or as said in front: `label=path` (quoted for Hydra: ['label=path'])."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.paths or not all(self.paths):
            found.append(
                "source.paths names nothing; pass at least one file, glob, folder or URL: source.paths=[corpus/]"
            )
        for i, path in enumerate(self.paths):
            if SECRET_IN_URL.search(path):
                found.append(
                    f"source.paths[{i}] is a URL with a password or a key in it, which would be written into the "
                    "dataset's records; leave it out, and give it the way its store reads it (environment, "
                    "~/.netrc, ~/.aws/credentials)"
                )
        return found


@dataclass(kw_only=True)
class Fields(Checked):
    text_field: str = "text"
    """The key or column that holds a document's text."""
    url_field: str | None = None
    """The key or column that holds the address a document came from; null: it has none."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.text_field:
            found.append("source.text_field is empty; name the key or column that holds the text")
        return found


@dataclass
class PythonStdlib(Limits):
    """The Python standard library's own sources without its tests, one file a document. Needs no download."""

    kind: str = "python_stdlib"


@dataclass
class PythonSite(Limits):
    """Every .py file of the installed packages, one file a document."""

    kind: str = "python_site"


@dataclass
class TextFiles(Files, Expansion):
    """Plain UTF-8 text, one file a document, whatever its name; .gz, .zst and .bz2 are uncompressed."""

    kind: str = "text"


@dataclass
class Jsonl(Files, Expansion, Fields):
    """One JSON object a line, one line a document; .jsonl or .ndjson or .json, plain, .gz, .zst or .bz2."""

    kind: str = "jsonl"


@dataclass
class Csv(Files, Expansion, Fields):
    """Rows under a header line, quoted as in RFC 4180; .csv or .tsv, plain, .gz, .zst or .bz2. Every text is taken as
    it is written: `NA` and `null` are words."""

    delimiter: Delimiter = Delimiter.comma
    """What stands between columns."""
    kind: str = "csv"


@dataclass
class Parquet(Files, Expansion, Fields):
    """One row a document; of the columns only those asked for are read."""

    kind: str = "parquet"


@dataclass
class Arrow(Files, Fields):
    """One row a document; .arrow or .feather, the file and the streaming layout (what `save_to_disk` writes)."""

    kind: str = "arrow"


@dataclass
class HuggingFace(Limits, Fields):
    """A dataset of the Hugging Face hub, a folder laid out like one, or a `save_to_disk` folder; streamed, one row a
    document."""

    dataset: str
    """Name on the hub (OWNER/NAME), or a local folder."""
    name: str | None = None
    """Which of the dataset's configurations; null: its only one, or its default."""
    split: str = "train"
    revision: str | None = None
    """Commit, tag or branch on the hub; a commit makes the corpus the same for ever."""
    kind: str = "hugging_face"

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.dataset:
            found.append("source.dataset is empty; pass OWNER/NAME or a folder")
        return found


@dataclass
class Warc(Files, Expansion):
    """The HTML pages of a crawl, one answer (status 2xx) a document, as the text that resiliparse extracts; .warc,
    plain, .gz, .zst or .bz2. Needs the extra `warc`."""

    main_content: bool = True
    """Without menus, headers and footers, by resiliparse's rules; false keeps all visible text."""
    kind: str = "warc"


@dataclass
class Wet(Files, Expansion):
    """The texts that Common Crawl extracted; .wet or .warc.wet, plain, .gz, .zst or .bz2. Needs the extra `warc`."""

    kind: str = "wet"


Source = PythonStdlib | PythonSite | TextFiles | Jsonl | Csv | Parquet | Arrow | HuggingFace | Warc | Wet

SOURCES: dict[str, type] = {
    "python_stdlib": PythonStdlib,
    "python_site": PythonSite,
    "text": TextFiles,
    "jsonl": Jsonl,
    "csv": Csv,
    "parquet": Parquet,
    "arrow": Arrow,
    "hugging_face": HuggingFace,
    "warc": Warc,
    "wet": Wet,
}
