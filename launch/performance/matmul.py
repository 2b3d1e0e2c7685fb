"""Matrix products of one block and of the head: FLOPs over what the GPU reaches, and the bytes they cannot but move."""

from dataclasses import dataclass
from math import hypot

from launch.performance.constants import Constants
from launch.performance.hardware import Hardware
from launch.performance.layout import Layout
from model.arithmetic import count_parameters
from model.config import Mlp


@dataclass(frozen=True)
class Product:
    """(rows x inner) · (inner x columns), on one GPU."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.columns

    @property
    def numbers(self) -> float:
        """Read and written once each."""
        return self.rows * self.inner + self.inner * self.columns + self.rows * self.columns


def block_products(layout: Layout) -> list[Product]:
    """Of one block's forward on one tensor-parallel rank, as fused as they can be: q, k and v; o; gate and up; down."""
    model, tp, rows = layout.model, layout.tp, layout.tokens
    into_mlp = 2 if model.mlp == Mlp.swiglu else 1
    return [
        Product(rows, model.d_model, (model.q_width + 2 * max(model.kv_width, tp)) // tp),
        Product(rows, model.q_width // tp, model.d_model),
        Product(rows, model.d_model, into_mlp * model.d_ff // tp),
        Product(rows, model.d_ff // tp, model.d_model),
    ]


def head_product(layout: Layout) -> Product:
    return Product(layout.tokens, layout.model.d_model, -(-layout.model.vocab_size // layout.tp))


def seconds(product: Product, hardware: Hardware, constants: Constants, dtype: str) -> float:
    """Of one of the three products of a matrix (forward, and two backward), all of the same FLOPs and bytes."""
    bytes_of = {"fp32": 4, "fp8": 1}.get(dtype, 2)
    moved = bytes_of * product.numbers / (hardware.memory_bytes_per_second * constants.memory_ratio)
    computed = product.flops / (hardware.peak(dtype) * ratio(hardware, constants, dtype))
    return hypot(computed, moved) + constants.kernel_seconds


def orthogonalisation_seconds(layout: Layout, hardware: Hardware, constants: Constants) -> float:
    """Of Muon's five rounds (of 6 FLOPs for each number and column of the narrow side) on the matrices of all blocks,
    each matrix done by one of all ranks."""
    model = layout.model
    flops = 5 * 6 * count_parameters(model).n_params_hidden * min(model.d_model, model.d_ff)
    return flops / layout.n_gpus / (hardware.peak("bf16") * ratio(hardware, constants, "bf16"))


def ratio(hardware: Hardware, constants: Constants, dtype: str) -> float:
    """What large matmuls reach of the dense peak."""
    bf16 = constants.matmul_ampere if hardware.generation == "ampere" else constants.matmul_hopper
    return limited(hardware, constants) * (constants.matmul_fp8 if dtype == "fp8" else bf16)


def limited(hardware: Hardware, constants: Constants) -> float:
    """What a limit of its power leaves of a GPU's speed at computing."""
    return (hardware.watts / hardware.rated_watts) ** constants.power_exponent
