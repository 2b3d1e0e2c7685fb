"""Text to token shards, from the command line.

    python -m data_prep out=data/stdlib                                        # this Python's own library, no download
    python -m data_prep out=data/web source=jsonl source.paths=[crawl/] clean=fineweb dedup=minhash on_bad_document=skip
    python -m data_prep out=data/stdlib stage=verify                           # every checksum of what the first made

In: keys of `DataPrepConfig` as KEY=VALUE. Out: the folder `out`, and a table of what is in it. Exit codes: 2 when the
configuration cannot be run, 3 when the data or the disk do not allow it. After a kill, the same command goes on.
"""

from conf.compose import App, entry
from data_prep.config import DataPrepConfig, Stage
from data_prep.dedup.config import DEDUPS
from data_prep.sources.config import SOURCES

APP = App("data_prep", DataPrepConfig, {"source": SOURCES, "dedup": DEDUPS})


def main() -> None:
    entry(APP, run)


def run(config: DataPrepConfig) -> None:
    # Imported here so that --help and mistakes are answered at once.
    from data_prep.pipeline import prepare
    from data_prep.report import table

    manifest = prepare(config)
    if manifest is not None and config.stage in (Stage.all, Stage.publish):
        print(table(manifest, config.out))


if __name__ == "__main__":
    main()
