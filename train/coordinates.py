"""Does a model keep its scale when it becomes wider? The coordinate check of muP, as a table and a picture.

    python -m train.coordinates                                                 # a small model, four widths, CPU
    python -m train.coordinates model.qk_norm=true grow=heads out=mine          # another model, more heads not wider
    python -m train.coordinates widths=[256,512,1024,2048] device=cuda seeds=5  # wider

The same model at several widths learns one small batch by heart, once with init=mup and once with init=gpt2. After each
step the mean size of each kind of activation is taken, and of what changed in it since step 0. Under muP the change is
the same at every width, so the slope of log2(change) against log2(width) is 0; under the standard recipe it is not
(Yang et al., arXiv 2203.03466, appendix D.1). Writes OUT/coordinates.svg and OUT/coordinates.json; exit code 1 if muP
is not flat.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from conf.compose import App, entry
from model.config import Init, ModelConfig
from train.config import Device
from train.optimizer_config import OptimizerConfig, OptimizerKind

FLAT = 0.25
"""A slope below this is flat. Every rule of muP is a power of sqrt(m), so one that is missing, or applied twice, shows
as a slope of 1/2 or more; this is half of that."""


class Growth(StrEnum):
    head_dim = "head_dim"
    """wider heads, as many of them"""
    heads = "heads"
    """more heads of the same width"""


@dataclass
class CoordinatesCommand:
    out: str = "coordinates"
    """folder of the picture and the figures"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """the model at its base width; the check sets its recipe and widths"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    """values of d_model"""
    grow: Growth = Growth.head_dim
    """what becomes of the heads when d_model grows"""
    steps: int = 20
    """optimizer steps; in the first few, scores and logits still show the noise they started from"""
    seeds: int = 2
    """runs that are averaged, each with weights and a batch of its own"""
    sequences: int = 4
    """rows of the batch"""
    seq_len: int = 32
    device: Device = Device.auto

    def problems(self) -> list[str]:
        found = [
            f"{name}={getattr(self, name)} must be at least {least}"
            for name, least in (("steps", 1), ("seeds", 1), ("sequences", 1), ("seq_len", 2))
            if getattr(self, name) < least
        ]
        if len(set(self.widths)) < 2 or self.widths != sorted(set(self.widths)) or self.widths[0] < 1:
            found.append(f"widths={self.widths} must be two or more rising numbers: a slope is fitted through them")
        if self.model.init != Init.gpt2 or self.model.mup_base_width or self.model.mup_base_head_dim:
            found.append(
                "model.init and model.mup_base_* are set by the check itself, both recipes in turn; leave them"
            )
        if self.optimizer.kind != OptimizerKind.adamw:
            found.append(f"optimizer.kind={self.optimizer.kind}: muP is made for AdamW here, and so is its check")
        limit = self.model.max_positions
        if limit is not None and self.seq_len > limit:
            found.append(f"seq_len={self.seq_len} is longer than model.max_positions={limit}")
        return found or self._width_problems()

    def _width_problems(self) -> list[str]:
        found: list[str] = []
        for width in self.widths:
            uneven = [name for name, size in _growing(self.model, self.grow).items() if size * width % self.base]
            if uneven:
                found.append(
                    f"widths: at d_model={width}, {' and '.join(uneven)} would be no whole number when growing with "
                    f"model.d_model={self.base}; take multiples of it, or powers of 2 times it"
                )
            else:
                found += [f"at d_model={width}: {p}" for p in at_width(self.model, width, self.grow).problems()]
        return found

    @property
    def base(self) -> int:
        return self.model.d_model


def at_width(base: ModelConfig, width: int, grow: Growth, recipe: Init = Init.gpt2) -> ModelConfig:
    """The model `base` with d_model=width and everything else that is meant to grow with it."""
    grown = {name: size * width // base.d_model for name, size in _growing(base, grow).items()}
    origin = {"mup_base_width": base.d_model, "mup_base_head_dim": base.head_width} if recipe == Init.mup else {}
    return replace(base, init=recipe, d_model=width, **{"head_dim": base.head_width, **grown, **origin})


def _growing(base: ModelConfig, grow: Growth) -> dict[str, int]:
    match grow:
        case Growth.head_dim:
            return {"head_dim": base.head_width, "d_ff": base.d_ff}
        case Growth.heads:
            return {"d_ff": base.d_ff, "n_heads": base.n_heads, "n_kv_heads": base.n_kv_heads}


@dataclass(frozen=True)
class Coordinates:
    """What one recipe did to one kind of activation."""

    kind: str
    recipe: Init
    widths: list[int]
    size: list[list[float]]
    """[step][width]: mean absolute value, step 0 being before the first update"""
    change: list[list[float]]
    """[step][width]: mean absolute difference from step 0"""

    @property
    def slope(self) -> float:
        """Of log2(change) at the last step against log2(width)."""
        return slope(self.widths, self.change[-1])

    @property
    def is_flat(self) -> bool:
        return abs(self.slope) < FLAT


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Exponent of the power of the width that fits best; NaN if a value is 0 or no number."""
    if not all(0 < value < math.inf for value in values):
        return math.nan
    return statistics.linear_regression([math.log2(w) for w in widths], [math.log2(v) for v in values]).slope


def measure(command: CoordinatesCommand, recipe: Init, device: str = "cpu") -> list[Coordinates]:
    """Trains every width under one recipe; gives each kind of activation."""
    from train.probe import readings

    shape = (command.sequences, command.seq_len)
    runs = [  # [width][seed][step][kind]
        [
            readings(
                at_width(command.model, width, command.grow, recipe),
                command.optimizer,
                shape=shape,
                steps=command.steps,
                seed=seed,
                device=device,
            )
            for seed in range(command.seeds)
        ]
        for width in command.widths
    ]

    def table(kind: str, of: int) -> list[list[float]]:
        return [
            [statistics.fmean(run[step][kind][of] for run in seeds) for seeds in runs]
            for step in range(command.steps + 1)
        ]

    return [Coordinates(kind, recipe, command.widths, table(kind, 0), table(kind, 1)) for kind in runs[0][0][0]]


def render(found: Sequence[Coordinates]) -> str:
    """The verdicts as a table: a line a kind of activation, muP beside the standard recipe."""
    narrow, wide = found[0].widths[0], found[0].widths[-1]
    header = f"{f'd_model {narrow}':>12} {f'{wide}':>9} {'slope':>6}"
    lines = [
        f"{'':<17} {'muP':>29} {'':<8} {'standard (gpt2)':>29}",
        f"{'mean |change|':<17} {header} {'':<8} {header}",
    ]
    for mup, standard in pairs(found):
        columns = " ".join(
            f"{c.change[-1][0]:>12.3g} {c.change[-1][-1]:>9.3g} {c.slope:>+6.2f} {_verdict(c):<8}"
            for c in (mup, standard)
        )
        lines.append(f"{mup.kind:<17} {columns}".rstrip())
    return "\n".join(lines)


def _verdict(found: Coordinates) -> str:
    return "flat" if found.is_flat else "NOT flat"


def pairs(found: Sequence[Coordinates]) -> list[tuple[Coordinates, Coordinates]]:
    """(under muP, under gpt2) for each kind."""
    by_recipe = {recipe: [c for c in found if c.recipe == recipe] for recipe in (Init.mup, Init.gpt2)}
    return list(zip(by_recipe[Init.mup], by_recipe[Init.gpt2], strict=True))


def _run(command: CoordinatesCommand) -> int:
    from train.parallel import RankGrid, choose_device, share_cores

    share_cores()
    from data_prep.files import publish_bytes, publish_json
    from train.coordinates_picture import draw

    device = choose_device(command.device, RankGrid(rank=0, world_size=1, local_rank=0, local_world_size=1))
    found = [c for recipe in (Init.mup, Init.gpt2) for c in measure(command, recipe, device)]
    folder = Path(command.out)
    publish_bytes(folder / "coordinates.svg", draw(found, command.optimizer.peak_lr).encode())
    publish_json(folder / "coordinates.json", {"schema_version": 1, **asdict(command), "found": _figures(found)})
    uneven = [c.kind for c in found if c.recipe == Init.mup and not c.is_flat]
    print(render(found))
    print(f"after {command.steps} steps, mean over {command.seeds} seeds; flat: a slope between -{FLAT} and {FLAT}")
    print(f"picture and figures: {folder}/coordinates.svg, {folder}/coordinates.json")
    if uneven:
        print(
            f"muP is not flat for: {', '.join(uneven)}. More steps or seeds, if it is noise; else the model has a fault"
        )
    return int(bool(uneven))


def _figures(found: Sequence[Coordinates]) -> list[dict]:
    """JSON knows no NaN: a slope that could not be fitted is null there."""
    return [{**asdict(c), "slope": None if math.isnan(c.slope) else c.slope, "is_flat": c.is_flat} for c in found]


def main() -> None:
    entry(App("coordinates", CoordinatesCommand, {}), _run)


if __name__ == "__main__":
    main()
