"""Weights between a run, a Hugging Face folder and a folder of bare weights that a run can start from.

    python -m train.convert source=runs/hello out=hf/ dtype=bf16       # for transformers, vLLM, lm-eval, …
    python -m train.convert source=hf/ out=weights/                    # then: python -m train run.start_from=weights/ …
    python -m train.convert source=runs/hello out=weights/ to=weights  # a finished run as the start of another

A Hugging Face folder is called "ok" only after `transformers` has loaded it and given the same numbers. `out` appears
when everything is right, or not at all.
"""

from pathlib import Path

from conf.compose import App, entry
from conf.errors import ConfigError
from train.convert.command import ConvertCommand, Target

APP = App("convert", ConvertCommand, {}, verbatim=("source", "out"))  # `source` is a group of another command


def run(command: ConvertCommand) -> None:
    from train.parallel import share_cores

    share_cores()
    from train.convert.sinks import NOT_CHECKED, write_hugging_face, write_weights
    from train.convert.sources import is_hugging_face, read_source

    from_hf = is_hugging_face(Path(command.source))
    to = command.to or (Target.weights if from_hf else Target.hf)
    problems = _useless(command, from_hf, to)
    if problems:
        raise ConfigError(problems)
    if to == Target.hf:
        from train.convert.proof import require_transformers

        require_transformers()
    source = read_source(command)
    for note in source.notes:
        print(note)
    write = write_hugging_face if to == Target.hf else write_weights
    lines = write(source, command)
    print("\n".join(lines))
    print(f"written, but not checked: {command.out}" if NOT_CHECKED in lines else f"ok: {command.out}")


def _useless(command: ConvertCommand, from_hf: bool, to: Target) -> list[str]:
    """What was asked for and would have no effect."""
    problems: list[str] = []
    if from_hf and to == Target.hf:
        problems.append("to=hf from a Hugging Face folder would make the same again; to=weights is what is left")
    if not from_hf and (command.rope_theta is not None or command.ignore_fields):
        problems.append("rope_theta and ignore_fields are for a config.json, and the source is no Hugging Face folder")
    if to == Target.weights and command.layout is not None:
        problems.append(f"layout={command.layout} is for a Hugging Face folder to be made (to=hf)")
    if command.step is not None and not (Path(command.source) / "checkpoints").is_dir():
        problems.append(f"step={command.step} is for a run's checkpoint, and the source is no run")
    return problems


def main() -> None:
    entry(APP, run)


if __name__ == "__main__":
    main()
