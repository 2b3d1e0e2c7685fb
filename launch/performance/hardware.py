"""One GPU kind with its links, as its data sheet gives them: numbers in, numbers out; nothing is measured here."""

import re
from dataclasses import dataclass
from functools import cache

from conf.app import CONF_FOLDER
from conf.check import read_config
from conf.errors import ConfigError
from train.config import ClusterConfig

FILES = {
    "A100-40": "a100_40", "A100-80": "a100_80", "H100-80": "h100", "H100-96": "h100_500w", "H200": "h200",
    "H200-141": "h200", "B200": "b200", "B200-180": "b200", "B200-192": "b200", "GB200": "gb200", "GB200-192": "gb200",
    "A100": "a100_80", "H100": "h100", "H800-80": "h800",
}  # fmt: skip
"""how published tables call GPUs, and the file of conf/cluster/ that describes each"""
FORM = re.compile(r"NVIDIA|SXM\d?|HBM\d\w?|DGX|HGX|TENSOR|CORE|GPU")
"""words of a name that leave the GPU the same"""
DEVICES = {
    "A100-SXM4-40GB": "A100-40", "A100-SXM4-80GB": "A100-80", "H100 80GB HBM3": "H100-80", "H200": "H200",
    "GB200": "GB200", "B200": "B200",
}  # fmt: skip
"""what nvidia-smi's names end in; as NVIDIA H100 PCIe is none of these, it is not taken for an SXM board"""


@dataclass(frozen=True)
class Hardware:
    name: str
    memory_bytes: float
    flops_per_second: dict[str, float]
    """dense peak by dtype: bf16 (fp16 is the same), fp8, fp32"""
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """of one GPU to the others of its node, one direction"""
    network_bytes_per_second: float
    """of one GPU to other nodes, one direction"""
    gpus_per_node: int
    watts: float
    generation: str
    """ampere, hopper or blackwell: decides what matmuls and attention kernels reach"""
    rated_watts: float
    """what the same chip may draw where nobody limits it"""

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s. Raises KeyError for a dtype that the GPU's tensor cores do not have."""
        return self.flops_per_second[{"fp16": "bf16"}.get(dtype, dtype)]


def hardware_of(cluster: ClusterConfig) -> Hardware | None:
    """None where the description is not complete enough to predict a time from."""
    peaks = {"bf16": cluster.bf16_flops_per_second, "fp8": cluster.fp8_flops_per_second}
    known = {dtype: peak for dtype, peak in (peaks | {"fp32": cluster.fp32_flops_per_second}).items() if peak}
    memory_gib, memory, generation = cluster.memory_gib, cluster.memory_bytes_per_second, cluster.generation
    gpus, link, network = cluster.gpus_per_node, cluster.link_bytes_per_second, cluster.network_bytes_per_second
    watts = cluster.watts
    if "bf16" not in known or not (memory_gib and memory and generation and gpus and link and network and watts):
        return None
    return Hardware(
        name=cluster.name,
        memory_bytes=memory_gib * 2**30,
        flops_per_second=known,
        memory_bytes_per_second=memory,
        link_bytes_per_second=link,
        network_bytes_per_second=network,
        gpus_per_node=gpus,
        watts=watts,
        generation=generation,
        rated_watts=cluster.rated_watts or watts,
    )


def kind_of(name: str) -> str:
    """A name as people write it ('NVIDIA H100 SXM5 80GB', 'A100-SXM4-40GB', 'h200') to the key of FILES that it means;
    itself where it means none: another form of a board ('H100 PCIe', 'GH200') is another GPU."""
    match [word for word in re.split(r"[\s_\-/()]+", name.upper()) if word and not FORM.fullmatch(word)]:
        case [chip] if chip in FILES:
            return chip
        case [chip]:
            return next((key for key in FILES if key.split("-")[0] == chip), name)
        case [chip, memory] if (key := f"{chip}-{memory.removesuffix('GB')}") in FILES:
            return key
        case _:
            return name


@cache
def hardware_named(name: str) -> Hardware:
    """As published tables call it. Raises ConfigError for one that no file describes."""
    kind = kind_of(name)
    if kind not in FILES:
        known = ", ".join(sorted(set(FILES.values())))
        raise ConfigError([f"the GPU kind {name!r} is described by none of conf/cluster: {known}"])
    found = hardware_of(read_config(ClusterConfig, CONF_FOLDER / "cluster" / f"{FILES[kind]}.yaml"))
    assert found is not None, f"conf/cluster/{FILES[kind]}.yaml is not complete"
    return found


def hardware_of_device(name: str) -> Hardware | None:
    """As nvidia-smi calls it; None if no file describes it."""
    return next((hardware_named(kind) for ending, kind in DEVICES.items() if name.endswith(f" {ending}")), None)
