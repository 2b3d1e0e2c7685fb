"""Imported by the fork server: what is set before the first rank is forked holds for all of them."""

import logging
import os
import warnings

from train.parallel import share_cores

share_cores()
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells standard error when it starts and stops

warnings.simplefilter("ignore", FutureWarning)
logging.disable(logging.INFO)
