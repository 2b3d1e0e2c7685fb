"""`python -m train` of which rank 1 is killed in step 13, if this is the first time: for torchrun to restart."""

import os
import signal
from pathlib import Path

from train.__main__ import main

if __name__ == "__main__":
    from train.session import Session

    lr = Session.lr

    def lr_or_death(session: Session) -> float:
        has_died = Path("died")
        if session.step == 12 and not session._is_first and not has_died.exists():  # pyright: ignore[reportPrivateUsage]
            has_died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return lr(session)

    Session.lr = lr_or_death
    main()
