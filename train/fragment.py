"""Where a flat run of numbers lies in a parameter: how ranks, checkpoints and layouts speak of parts of tensors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fragment:
    """A flat range of one parameter, or of its tensor-parallel slice."""

    name: str
    """logical parameter name"""
    shape: tuple[int, ...]
    """of the whole logical tensor"""
    tp_dim: int | None
    """the dimension that tensor parallelism cuts; None: whole"""
    tp_start: int
    """the slice along tp_dim is [tp_start, tp_stop); 0 and 0 if whole"""
    tp_stop: int
    start: int
    """flat range [start, stop) inside that slice"""
    stop: int
