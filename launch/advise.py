"""`launch advise`: from the runs of a sweep and a budget to the run that should be trained. No torch; seconds.

In: rows that carry a law, the network's kind, the cluster, and FLOPs, device-hours or dollars; or a loss to be reached.
Out: a real shape, its tokens, what it reaches with intervals, what it costs, what is lost if the law is wrong, and the
command. Nothing is said of what lies outside of the sampled sizes and lengths unless `extrapolate` allows it.

The order: the law of the rows; all shapes that could be; what a token of each costs; the best of them by the law; how
far outside that is; its plan.
"""

import dataclasses
from collections.abc import Sequence

from conf.errors import ConfigError
from launch.advise_config import AdviseConfig
from launch.advise_made import Advice, advice
from launch.advise_shapes import words_of
from launch.advise_text import advice_text
from train.config import TrainConfig


def advise(config: AdviseConfig, words: Sequence[str], base: str = "") -> None:
    """Prints the advice. base: where words are from that nobody typed. Raises ConfigError where there is none that the
    rows could answer for."""
    if any(word.lstrip("+").startswith("total_tokens=") for word in words):
        raise ConfigError(
            ["total_tokens is what is advised: leave it out, and say what may be spent with budget.flops="]
        )
    found = advice(config)
    print(advice_text(found, command_words(found, words)))
    if base:
        print(f"\nlaw, data, network, batch, optimizer, schedule: as of {base}, where nothing else was typed")


def command_words(found: Advice, words: Sequence[str]) -> list[str]:
    """Overrides of `train` for the advised run: what was typed, without what is asked of `advise` alone and what is
    advised otherwise, and then the advice."""
    advised = [*words_of(found.shape.model), *found.layout, f"total_tokens={found.tokens}"]
    keys = {word.partition("=")[0] for word in advised}
    own = {item.name for item in dataclasses.fields(AdviseConfig)} - {
        item.name for item in dataclasses.fields(TrainConfig)
    }

    def stays(word: str) -> bool:
        key = word.lstrip("+").partition("=")[0]
        return key not in keys and key.partition(".")[0] not in own

    return [*filter(stays, words), *advised]
