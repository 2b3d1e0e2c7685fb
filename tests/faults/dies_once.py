"""`python -m train` of which rank 1 is killed in step 13, if this is the first time: for torchrun to restart."""

import os
import signal
from pathlib import Path
from typing import Any

from train.__main__ import main

if __name__ == "__main__":
    from train.data import TrainBatches

    micro_batches = TrainBatches.micro_batches

    def batches_or_death(self: TrainBatches, step: int) -> Any:
        has_died = Path("died")
        if step == 12 and os.environ["RANK"] == "1" and not has_died.exists():
            has_died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return micro_batches(self, step)

    TrainBatches.micro_batches = batches_or_death
    main()
