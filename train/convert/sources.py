"""What can be converted, brought to one form: a run, a Hugging Face folder, a folder of our weights → `Source`.

Nothing is ever unpickled. Every tensor that a file holds must be asked for and every one asked for must be there, by
name and by shape; what a Hugging Face folder holds besides (buffers of old versions) is known by name and told.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.files import DataError, sha256_file
from data_prep.manifest import TOKENIZER
from data_prep.tokenizer import Tokenizer
from model.config import ModelConfig
from model.names import Layout, parts_of, place_of, their_shape, to_ours
from train.convert.command import ConvertCommand
from train.convert.files import INDEX, SINGLE
from train.convert.tokenizer_files import special_ids
from train.convert.understood import understood
from train.weights import MANIFEST, MODEL_YAML, mismatches, open_weights, read_object, shapes_of, tensors_in

HF_TOKENIZER, HF_TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
OUR_NAMES = {HF_TOKENIZER: "tokenizer.hf.json", HF_TOKENIZER_CONFIG: "tokenizer_config.hf.json"}
"""what tokenizer files of Hugging Face are called in a folder of ours (the first as in a dataset)"""
BUFFERS = re.compile(r"(.*\.)?h\.\d+\.attn\.(bias|masked_bias)|.*\.rotary_emb\.inv_freq")
"""causal masks and frequencies, which old versions stored: they follow from the configuration"""
STEMS = {Layout.gpt2: ("transformer.", "wte.weight")}
"""the prefix of all names but the head's, which a file saved from the network without a head lacks, and a name that
tells; Llama's family has `model.`"""
FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Source:
    model: ModelConfig
    read: Callable[[str], Tensor]
    """our name → whole tensor as stored"""
    context: int
    ids: Mapping[str, int | None]
    tokenizer: Tokenizer | None
    passed_on: Mapping[str, bytes]
    """tokenizer files of Hugging Face, by their name there"""
    tokenizers: tuple[str, ...]
    """SHA-256 of the files by which a dataset may be known to have the same tokenizer"""
    layout: Layout | None
    """None: not from Hugging Face"""
    notes: tuple[str, ...]
    """what the reader should know"""


def is_hugging_face(path: Path) -> bool:
    return (path / "config.json").is_file()


def read_source(command: ConvertCommand) -> Source:
    """Raises DataError or CheckpointError for a folder that is none of the three, or is damaged."""
    path = Path(command.source)
    if is_hugging_face(path):
        return _from_hugging_face(path, command)
    if (path / MODEL_YAML).is_file() and (path / MANIFEST).is_file():
        return _from_weights(path)
    if (path / "checkpoints").is_dir():
        return _from_run(path, command.step)
    raise DataError(
        f"source={path} is neither a run's folder (checkpoints/), nor a Hugging Face folder (config.json), nor a "
        f"folder of weights ({MODEL_YAML}, {MANIFEST})"
    )


def _from_run(path: Path, step: int | None) -> Source:
    from train.trained import load_trained

    trained = load_trained(path, step)
    parameters = dict(trained.model.named_parameters())
    tokenizer, passed_on = None, {}
    if (path / TOKENIZER).is_file():
        tokenizer = Tokenizer.load(path / TOKENIZER)
        if tokenizer.sha256 != trained.tokenizer_sha256:
            raise DataError(f"{path / TOKENIZER} is not the tokenizer that this run was trained with")
    else:
        passed_on = _of_data([Path(source.folder) for source in trained.config.data.mixture.values()], trained)
    found = tokenizer is not None or bool(passed_on)
    return Source(
        model=trained.config.model,
        read=lambda name: parameters[name].detach().cpu(),
        context=trained.config.model.max_positions or trained.config.data.seq_len,
        ids=special_ids(tokenizer),
        tokenizer=tokenizer,
        passed_on=passed_on,
        tokenizers=(trained.tokenizer_sha256,),
        layout=None,
        notes=(f"step {trained.step}", *(() if found else ("no tokenizer: the run's data came without one",))),
    )


def _of_data(folders: list[Path], trained: Any) -> dict[str, bytes]:
    """The tokenizer.json that imported data were made with, if it lies beside them."""
    for folder in folders:
        file = folder / OUR_NAMES[HF_TOKENIZER]
        if file.is_file() and sha256_file(file) == trained.tokenizer_sha256:
            return {HF_TOKENIZER: file.read_bytes()}
    return {}


def _from_weights(path: Path) -> Source:
    folder = open_weights(path, every_byte=True)
    read, shapes = tensors_in(path)
    _require(path, mismatches(shapes_of(folder.model), shapes))
    tokenizer = Tokenizer.load(path / TOKENIZER) if (path / TOKENIZER).is_file() else None
    return Source(
        model=folder.model,
        read=read,
        context=folder.manifest["context"],
        ids=folder.manifest["ids"],
        tokenizer=tokenizer,
        passed_on={name: (path / ours).read_bytes() for name, ours in OUR_NAMES.items() if (path / ours).is_file()},
        tokenizers=folder.tokenizers,
        layout=None,
        notes=(),
    )


def _from_hugging_face(path: Path, command: ConvertCommand) -> Source:
    tree = read_object(path / "config.json")
    if absent := [key for key in command.ignore_fields if key not in tree]:
        raise DataError(f"ignore_fields={absent}: {path / 'config.json'} has no such field")
    found = understood(tree, rope_theta=command.rope_theta, ignored=command.ignore_fields)
    _refuse_pickles(path)
    held, shapes = tensors_in(path)
    _same_as_index(path, shapes)
    names, notes = _theirs(found.model, found.layout, shapes, held)
    wanted = _wanted(found.model, found.layout)
    _require(path, mismatches(wanted, {name: shapes[stored] for name, stored in names.items()}))
    tokenizer, passed_on, digests = _tokenizer_files(path)
    if tokenizer is not None and tokenizer.vocab_size > found.model.vocab_size:
        raise DataError(
            f"{path / TOKENIZER} has {tokenizer.vocab_size} pieces, the model {found.model.vocab_size} rows: it is "
            "another model's"
        )
    return Source(
        model=found.model,
        read=partial(_read, names=names, held=held, layout=found.layout),
        context=found.context,
        ids=found.ids,
        tokenizer=tokenizer,
        passed_on=passed_on,
        tokenizers=digests,
        layout=found.layout,
        notes=(*found.notes, *notes, *(() if digests else ("no tokenizer lies in the folder",))),
    )


def _refuse_pickles(path: Path) -> None:
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickles:
        raise DataError(
            f"{path} holds its tensors as {', '.join(pickles)}: a pickle, which can run any program when it is opened. "
            "Have it saved as safetensors (save_pretrained of transformers 5 does)"
        )
    raise DataError(f"{path} holds no safetensors file")


def _same_as_index(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not (path / INDEX).is_file():
        if not (path / SINGLE).is_file():
            raise DataError(f"{path} holds neither {SINGLE} nor {INDEX}")
        return
    listed = read_object(path / INDEX).get("weight_map")
    if not isinstance(listed, dict):
        raise DataError(f"{path / INDEX} has no weight_map")
    if absent := sorted(set(map(str, listed.values())) - {file.name for file in path.glob("*.safetensors")}):
        raise DataError(f"{path / INDEX} names files that are missing: {', '.join(absent)}")
    if listed.keys() != shapes.keys():
        raise DataError(f"{path / INDEX} and its files differ in {sorted(listed.keys() ^ shapes.keys())}")


def _wanted(model: ModelConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of theirs."""
    shapes = shapes_of(model)
    return {
        name: their_shape(shapes[parts[0]], place_of(parts[0], layout))
        for name, parts in parts_of(shapes, layout).items()
    }


def _theirs(
    model: ModelConfig, layout: Layout, shapes: Mapping[str, Any], held: Callable[[str], Tensor]
) -> tuple[dict[str, str], list[str]]:
    """(name in the table → name in the files) of what is to be matched, and notes on what is left out.

    A tied head may be stored a second time: then it must be equal.
    """
    stem, tell = STEMS.get(layout, ("model.", "embed_tokens.weight"))
    prefix = stem if tell in shapes else ""
    names = {name if name.startswith("lm_head.") else prefix + name: name for name in shapes}
    notes: list[str] = []
    if buffers := [name for name, stored in names.items() if BUFFERS.fullmatch(stored)]:
        notes.append(f"{len(buffers)} buffers are left out, which follow from the configuration: {buffers[0]}, …")
    if model.tie_embeddings and "lm_head.weight" in names:
        embedding = names.get(place_of("embedding.weight", layout).name)
        if embedding is None or not _equal(held(names["lm_head.weight"]), held(embedding)):
            raise DataError(
                "config.json says tie_word_embeddings, but lm_head.weight is not the embedding: one of them is wrong"
            )
        buffers.append("lm_head.weight")
    return {name: stored for name, stored in names.items() if name not in buffers}, notes


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _read(name: str, names: Mapping[str, str], held: Callable[[str], Tensor], layout: Layout) -> Tensor:
    place = place_of(name, layout)
    tensor = held(names[place.name])
    if str(tensor.dtype).removeprefix("torch.") not in FLOATS:
        raise DataError(f"{place.name} is stored as {tensor.dtype}; understood are {', '.join(FLOATS)}")
    return to_ours(tensor, place)


def _tokenizer_files(path: Path) -> tuple[Tokenizer | None, dict[str, bytes], tuple[str, ...]]:
    """A tokenizer.model that is no SentencePiece model (Llama 3 has one) is left alone."""
    tokenizer = None
    if (path / TOKENIZER).is_file():
        try:
            tokenizer = Tokenizer.load(path / TOKENIZER)
        except DataError:
            tokenizer = None
    passed_on = {name: (path / name).read_bytes() for name in OUR_NAMES if (path / name).is_file()}
    digests = [tokenizer.sha256] if tokenizer else []
    if HF_TOKENIZER in passed_on:
        digests.append(hashlib.sha256(passed_on[HF_TOKENIZER]).hexdigest())
    return tokenizer, passed_on, tuple(digests)


def _require(path: Path, problems: list[str]) -> None:
    if problems:
        raise DataError(f"{path}: the files do not hold the model of the configuration:\n  " + "\n  ".join(problems))
