"""Imported by the fork server: what is set before the first rank is forked holds for all of them."""

import logging
import warnings

from train.parallel import name_accelerator, share_cores

share_cores()
name_accelerator("cpu")

warnings.simplefilter("ignore", FutureWarning)
logging.disable(logging.INFO)
