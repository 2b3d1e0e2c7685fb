"""A `Source` → a Hugging Face folder, or a folder of weights of ours, each proved before it takes its name."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.check import to_yaml
from data_prep.files import DataError, publish_bytes, publish_json, sha256_file
from data_prep.manifest import TOKENIZER
from model.config import Scaling
from model.names import Layout, parts_of, place_of, to_theirs
from model.transformer import Transformer
from train.convert.command import ConvertCommand, Dtype
from train.convert.files import INDEX, finished, index_of, write_tensors
from train.convert.layouts import config_json, layout_for
from train.convert.proof import ProofError, prove
from train.convert.sources import HF_TOKENIZER, HF_TOKENIZER_CONFIG, OUR_NAMES, Source
from train.convert.tokenizer_files import prove_ids, prove_their_ids, write_tokenizer
from train.weights import MANIFEST, MODEL_YAML, SCHEMA_VERSION, arguments, shapes_of, start_weights

DTYPES = {Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16}
NOT_CHECKED = "NOT checked against transformers, which is not installed: pip install 'crisol[export]', convert again"


def write_hugging_face(source: Source, command: ConvertCommand) -> list[str]:
    """Returns what was proved, line by line. Raises ProofError, or ConfigError for what no layout can express."""
    layout = layout_for(source.model, command.layout)
    with finished(Path(command.out)) as folder:
        names = list(shapes_of(source.model))
        dtype = _stored(source, command).dtype
        _write_theirs(folder, source, command, layout)
        context = _context(source, command)
        tree = config_json(
            source.model, layout, context=context, dtype=str(dtype).removeprefix("torch."), ids=source.ids
        )
        publish_json(folder / "config.json", tree)
        publish_json(folder / "generation_config.json", {k: v for k, v in source.ids.items() if v is not None})
        lines = [f"layout {layout}, {tree['dtype']}, {len(names)} parameters, context {context}"]
        lines += _write_tokenizer(folder, source, command, context)
        model = _filled(source, command)
        return lines + prove(folder, model, layout)


def _write_theirs(folder: Path, source: Source, command: ConvertCommand, layout: Layout) -> None:
    total = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal total
        for name, parts in sorted(parts_of(shapes_of(source.model), layout).items()):
            tensor = to_theirs([_stored(source, command, part) for part in parts], place_of(parts[0], layout))
            total += tensor.nbytes
            yield name, tensor

    held = write_tensors(folder, tensors(), command.shard_bytes)
    if len(set(held.values())) > 1:
        publish_json(folder / INDEX, index_of(held, total))


def _context(source: Source, command: ConvertCommand) -> int:
    if command.context is not None and source.model.max_positions not in (None, command.context):
        raise DataError(
            f"context={command.context}: the model has a table of {source.model.max_positions} learned positions"
        )
    scaling = source.model.rope_scaling
    if scaling.kind == Scaling.yarn:  # readers before transformers 5 take the factor from the ratio of the two
        whole = round(scaling.factor * scaling.original_context)
        if command.context not in (None, whole):
            raise DataError(f"context={command.context}: with yarn it is factor x original_context = {whole}")
        return whole
    return command.context or source.context


def _stored(source: Source, command: ConvertCommand, name: str = "embedding.weight") -> Tensor:
    """A tensor in the dtype in which it is to be stored."""
    tensor = source.read(name)
    return tensor if command.dtype is None else tensor.to(DTYPES[command.dtype])


def _filled(source: Source, command: ConvertCommand) -> Transformer:
    """Our model in fp32, with the numbers that are stored."""
    model = Transformer(source.model)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(_stored(source, command, name))
    return model.eval()


def _write_tokenizer(folder: Path, source: Source, command: ConvertCommand, context: int) -> list[str]:
    if not command.tokenizer:
        return ["no tokenizer, as asked"]
    if source.tokenizer is not None:
        write_tokenizer(folder, source.tokenizer, context)
        return [prove_ids(folder, source.tokenizer)]
    if not source.passed_on:
        return ["no tokenizer"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    content = {HF_TOKENIZER_CONFIG: json.dumps(settings, indent=2).encode(), **source.passed_on}
    for name, data in content.items():
        publish_bytes(folder / name, data)
    return [f"{HF_TOKENIZER} is passed on unchanged; there is no other tokenizer to compare its ids with"]


def write_weights(source: Source, command: ConvertCommand) -> list[str]:
    """Returns what was proved, and how to start a run. Raises ProofError where transformers gives other numbers."""
    with finished(Path(command.out)) as folder:
        shapes = shapes_of(source.model)
        write_tensors(folder, ((name, _stored(source, command, name)) for name in shapes), command.shard_bytes)
        publish_bytes(folder / MODEL_YAML, to_yaml(source.model).encode())
        kept = command.tokenizer and _keep_tokenizer(folder, source)
        publish_json(folder / MANIFEST, _manifest(folder, source, command))
        lines = [f"{len(shapes)} parameters of {sum(map(_numel, shapes.values())):,} numbers"]
        lines += [] if kept else ["no tokenizer kept: whether data fit these weights cannot be checked"]
        lines += _proved_against_source(folder, source, command)
    start = f"python -m train run.start_from={command.out} {arguments(source.model)} run.name=… data.folder=…"
    return [*lines, f"to start a run from it:\n  {start}"]


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _keep_tokenizer(folder: Path, source: Source) -> bool:
    if source.tokenizer is not None:
        publish_bytes(folder / TOKENIZER, source.tokenizer.content)
    for name, data in source.passed_on.items():
        publish_bytes(folder / OUR_NAMES[name], data)
    return source.tokenizer is not None or HF_TOKENIZER in source.passed_on


def _manifest(folder: Path, source: Source, command: ConvertCommand) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(folder.iterdir())
        },
        "tokenizers": list(source.tokenizers) if command.tokenizer else [],
        "context": _context(source, command),
        "ids": dict(source.ids),
    }


def _proved_against_source(folder: Path, source: Source, command: ConvertCommand) -> list[str]:
    """The folder that was written, read as a run will read it; and what was read, against transformers on the same
    files."""
    initial = start_weights(folder)
    model = Transformer(source.model)
    for name, parameter in model.named_parameters():
        if not torch.equal(initial(name, parameter.shape), _stored(source, command, name).float()):
            raise ProofError(f"{name} was not read back as it was written")
        parameter.data.copy_(source.read(name))
    if source.layout is None:
        return ["read back equal to the bit"]
    if importlib.util.find_spec("transformers") is None:
        return [NOT_CHECKED]
    assumed = {"rope_theta": command.rope_theta, "ignored": command.ignore_fields}
    lines = prove(Path(command.source), model.eval(), source.layout, **assumed)
    if command.tokenizer and source.tokenizer is not None:
        lines.append(prove_their_ids(Path(command.source), source.tokenizer))
    return lines
