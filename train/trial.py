"""Does what training needs work on this machine? Tried, not asked: `python -m train.trial` prints JSON for `launch
doctor`.

Two ranks meet on the loopback interface, take up DeepSpeed and add up a tensor, as every step of a run does; every GPU
multiplies matrices; and the folder in which torch keeps what it compiles is searched for locks that a killed build
left.
"""

import json
import time
import traceback
from pathlib import Path
from typing import Any

from train.parallel import extensions_folder, hush_torch, name_accelerator, share_cores

STALE_SECONDS = 600.0
_RANKS_SECONDS = 50.0


def main() -> None:
    share_cores()
    hush_torch()
    name_accelerator("cpu")
    found = {"ranks": _ranks(), "gpus": _gpus(), "locks": stale_locks(extensions_folder())}
    print(json.dumps(found))


def stale_locks(folder: Path) -> list[str]:
    """Locks of builds that are not under way: torch waits for their removal, without limit and without a word."""
    found: list[str] = []
    for lock in [*folder.glob("*/lock"), *folder.glob("*/*/lock")]:
        try:
            if time.time() - lock.stat().st_mtime > STALE_SECONDS:
                found.append(str(lock))
        except OSError:
            continue
    return found


def _ranks() -> dict[str, Any]:
    from train.verify.ranks import RankFailedError, Ranks, preload

    preload(["torch", "deepspeed"])
    started = time.perf_counter()
    try:
        sums = Ranks(_add_up, 2).results(_RANKS_SECONDS)
    except RankFailedError as error:
        return {"problem": str(error).strip().splitlines()[-1]}
    except Exception:
        return {"problem": traceback.format_exc().strip().splitlines()[-1]}
    problem = None if sums == [3.0, 3.0] else f"1 + 2 was {sums} on the two ranks"
    return {"problem": problem, "seconds": time.perf_counter() - started}


def _add_up() -> float:
    import torch
    import torch.distributed as dist

    from train.engine.library import join_ranks

    join_ranks("cpu")
    number = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(number)
    return float(number)


def _gpus() -> list[str]:
    """What is wrong with those that torch sees."""
    import torch

    from train.preflight.place import ShortError, compute

    found: list[str] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            compute(f"cuda:{index}")
        except ShortError as error:
            found.append(str(error))
    return found


if __name__ == "__main__":
    main()
