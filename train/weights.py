"""A folder of bare weights, and a run that starts from one: continued pretraining.

    model.yaml            the ModelConfig
    model.safetensors     whole tensors by our names (or model-00001-of-0000N.safetensors)
    tokenizer.model       if there is one; or tokenizer.hf.json
    manifest.json         size and SHA-256 of each file, written last; which tokenizers belong to it

`python -m train.convert` writes it. `start_weights` gives the initial value of each parameter from it. No torch at the
top: whether a run may start from a folder is answered before anything is started.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.check import flatten, read_config, to_tree
from conf.errors import ConfigError
from data_prep.files import DataError, sha256_file
from model.config import Init, ModelConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCHEMA_VERSION = 1
MANIFEST, MODEL_YAML = "manifest.json", "model.yaml"
ABOUT_DRAWING = ("init", "init_std")


@dataclass(frozen=True)
class WeightsFolder:
    path: Path
    model: ModelConfig
    tokenizers: tuple[str, ...]
    """SHA-256 of each file that says what its ids mean; none if that is unknown"""
    manifest: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Of the manifest, and with it of every byte."""
        return sha256_file(self.path / MANIFEST)


def open_weights(path: Path, *, every_byte: bool) -> WeightsFolder:
    """every_byte: checksums too, not only sizes. Raises DataError that names the file."""
    if not (path / MANIFEST).is_file():
        raise DataError(f"{path} is no folder of weights: it has no {MANIFEST}; python -m train.convert makes one")
    manifest = read_object(path / MANIFEST)
    try:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{path / MANIFEST}: schema version {manifest['schema_version']}, expected {SCHEMA_VERSION}"
            )
        for name, facts in manifest["files"].items():
            if Path(name).name != name:
                raise DataError(f"{path / MANIFEST} names {name!r}, which is not a plain file name of its own folder")
            _check(path / name, facts, every_byte)
        model = read_config(ModelConfig, path / MODEL_YAML)
        return WeightsFolder(path, model, tuple(manifest["tokenizers"]), manifest)
    except ConfigError as error:
        raise DataError(f"{path / MODEL_YAML} is no model of this version: {'; '.join(error.problems)}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / MANIFEST} is not a manifest of weights: {error!r}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def read_object(file: Path) -> dict[str, Any]:
    """Raises DataError when the file is missing, unreadable, or no JSON object."""
    try:
        tree = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{file} does not hold a JSON object")
    return tree


def _check(file: Path, facts: Mapping[str, Any], every_byte: bool) -> None:
    if not file.is_file():
        raise DataError(f"{file} is missing")
    if (size := file.stat().st_size) != facts["bytes"]:
        raise DataError(f"{file} has {size} bytes, {facts['bytes']} were written")
    if every_byte and sha256_file(file) != facts["sha256"]:
        raise DataError(f"{file} was altered after it was written: its checksum does not match")


def start_problems(path: Path, model: ModelConfig, tokenizer_sha256: str, *, every_byte: bool) -> list[str]:
    """Why a run of this model on data of this tokenizer may not start from the folder; empty if it may.

    Raises DataError if the folder itself is missing or damaged.
    """
    folder = open_weights(path, every_byte=every_byte)
    found = differences(folder.model, model)
    if found:
        found = [f"run.start_from={path} holds another model: {', '.join(found)}. What fits: {arguments(folder.model)}"]
    if folder.tokenizers and tokenizer_sha256 not in folder.tokenizers:
        found.append(
            f"run.start_from={path} was trained with another tokenizer than the data: an id would mean another text. "
            f"Prepare the data with the tokenizer in {path}"
        )
    return found


def differences(held: ModelConfig, asked: ModelConfig) -> list[str]:
    """Keys in which the model asked for is not the one held. How weights are drawn does not count, but for muP, which
    goes on to decide how they are used."""
    mine, theirs = flatten(to_tree(held)), flatten(to_tree(asked))
    if (held.init == Init.mup) == (asked.init == Init.mup):
        mine, theirs = ({k: v for k, v in tree.items() if k not in ABOUT_DRAWING} for tree in (mine, theirs))
    mine["head_dim"], theirs["head_dim"] = held.head_width, asked.head_width
    return [f"model.{key} is {mine[key]!r} there, {theirs[key]!r} here" for key in mine if mine[key] != theirs[key]]


def arguments(model: ModelConfig) -> str:
    """The words of a command line that ask for this model."""
    usual = to_tree(ModelConfig())
    chosen = {key: value for key, value in to_tree(model).items() if value != usual[key]}
    return f"'model={_word(chosen)}'"


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_word(one)}" for key, one in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def start_weights(path: Path) -> "Callable[[str, torch.Size], Tensor]":
    """The function that gives the whole first value, fp32 on the CPU, of a parameter by name and shape.

    Raises DataError if the tensors in the folder are not those of its own model.yaml; the function raises it for a
    parameter that the folder does not hold in that shape.
    """
    folder = open_weights(path, every_byte=False)
    read, shapes = tensors_in(path)
    wanted = shapes_of(folder.model)
    if problems := mismatches(wanted, shapes):
        raise DataError(f"{path} does not hold the model of its {MODEL_YAML}:\n  " + "\n  ".join(problems))

    def initial(name: str, shape: "torch.Size") -> "Tensor":
        if shapes.get(name) != tuple(shape):
            held = f"in the shape {shapes[name]}" if name in shapes else "not at all"
            raise DataError(f"{path} holds {name} {held}, the model has it as {tuple(shape)}")
        return read(name).float()

    return initial


def shapes_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter; a tied head is not one of its own."""
    import torch

    from model.transformer import Transformer

    with torch.device("meta"):
        network = Transformer(model)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def mismatches(wanted: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Every name that only one side has, and every shape that differs; one line a kind."""
    lines = {
        "missing": sorted(wanted.keys() - held.keys()),
        "not asked for": sorted(held.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {held[name]} instead of {wanted[name]}"
            for name in sorted(wanted.keys() & held.keys())
            if wanted[name] != held[name]
        ],
    }
    return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in lines.items() if names]


def tensors_in(path: Path) -> "tuple[Callable[[str], Tensor], dict[str, tuple[int, ...]]]":
    """(name → tensor as stored, read when asked for; name → shape) of all safetensors files in a folder.

    Raises DataError for a file that is cut or is none, and for a name that two files hold.
    """
    from safetensors import SafetensorError, safe_open

    files: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            opened: Any = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} is damaged or cut: {error}") from None
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            if name in files:
                raise DataError(f"{name} lies in two files of {path}")
            files[name] = opened
            shapes[name] = tuple(opened.get_slice(name).get_shape())
    return lambda name: files[name].get_tensor(name), shapes
