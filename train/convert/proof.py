"""Is a Hugging Face folder the model it should be? Asked of `transformers` itself, and of every byte it loads.

In: a folder, and our model with the same weights. Out: lines that say what was proved; ProofError names the first thing
that is not so. `transformers` loads a misnamed or missing tensor as fresh random numbers and a forgotten rope_theta as
10000, with no more than a printed table: so its own report of the loading is read, then the configuration as it
understood it, each tensor it holds, logits, and tokens that it generates.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.files import DataError
from model.names import Layout, parts_of, place_of, to_theirs
from model.transformer import Transformer
from train.convert.layouts import differing
from train.convert.understood import understood

N_ROWS, ROW_TOKENS, NEW_TOKENS = 3, 64, 16
FP32_BOUND = 1e-4
"""largest difference of logits, relative to the largest logit. Both sides sum in fp32 (2^-24 = 6e-8 an operation) in
another order; over a hundred layers that comes to about 1e-5. A fault that matters moves logits by 1e-2 and more."""
STORED_BOUND = 4
"""times the error that the stored dtype costs our own model: theirs rounds in other places, but as finely"""


class ProofError(Exception):
    """The converted model is not the one it was made from. Nothing is left under the name that was asked for."""

    exit_code = 6


def require_transformers() -> Any:
    """Raises DataError that says how to get it."""
    try:
        import transformers
    except ImportError:
        raise DataError(
            "a Hugging Face folder is only called finished after `transformers` has loaded it and given the same "
            "numbers, and transformers is not installed: pip install 'crisol[export]'"
        ) from None
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """transformers, without its tables and progress bars: what it has to report is read from what it returns."""
    transformers = require_transformers()
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def prove(folder: Path, model: Transformer, layout: Layout, **assumed: Any) -> list[str]:
    """model: fp32, holding the numbers that the folder stores. assumed: as `understood` takes it."""
    with quiet():
        theirs = _loaded(folder, torch.float32)
        _same_configuration(theirs, model, layout, **assumed)
        _same_tensors(theirs, model, layout)
        rows = _rows(theirs, model)
        ours = _logits(model, rows)
        lines = [
            f"transformers loads it: {sum(1 for _ in theirs.parameters())} tensors, all equal to ours to the bit",
            _same_logits(theirs, rows, ours),
            _same_greedy_tokens(theirs, model, rows),
        ]
        del theirs
        stored = _loaded(folder, "auto")
        if stored.dtype != torch.float32:
            lines.append(_same_stored_logits(stored, model, rows, ours))
        return lines


def _loaded(folder: Path, dtype: Any) -> Any:
    transformers = require_transformers()
    try:
        loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except Exception as error:  # ValueError, RuntimeError, OSError, SafetensorError, …: whatever it is, it is a no
        raise ProofError(f"transformers cannot load {folder}: {type(error).__name__}: {error}") from error
    if faults := {kind: sorted(map(str, found)) for kind, found in report.items() if found}:
        raise ProofError(
            f"transformers does not find each tensor where it looks for it, and goes on with random numbers: {faults}"
        )
    return loaded.eval()


def _same_configuration(theirs: Any, model: Transformer, layout: Layout, **assumed: Any) -> None:
    """What transformers has made of config.json, its own defaults included, is our model again."""
    found = understood(theirs.config.to_dict(), **assumed)
    problems = differing(model.config, found.model, layout) if found.layout == layout else [f"it is a {found.layout}"]
    if problems:
        raise ProofError(f"transformers understands another model from config.json: {'; '.join(problems)}")


def _same_tensors(theirs: Any, model: Transformer, layout: Layout) -> None:
    ours, found = dict(model.named_parameters()), dict(theirs.named_parameters())
    parts = parts_of(ours, layout)
    if parts.keys() != found.keys():
        raise ProofError(f"tensors that only one side has: {sorted(parts.keys() ^ found.keys())}")
    for name, names in parts.items():
        expected = to_theirs([ours[part].detach() for part in names], place_of(names[0], layout))
        if not torch.equal(found[name].detach().to(expected.device), expected):
            raise ProofError(f"transformers holds other numbers than ours in {name}")


def _rows(theirs: Any, model: Transformer) -> Tensor:
    """(N_ROWS, T) ids of the whole vocabulary, padding included; longer than a sliding window if that is short."""
    config = model.config
    context = min(getattr(theirs.config, "max_position_embeddings", ROW_TOKENS), config.max_positions or 1 << 20)
    n_tokens = min(context, max(ROW_TOKENS, min(2 * (config.sliding_window or 0), 1024)))
    return torch.randint(0, config.vocab_size, (N_ROWS, n_tokens), generator=torch.Generator().manual_seed(0))


def _logits(model: Any, rows: Tensor) -> Tensor:
    """(B, T, V) fp32 on the CPU, of our model or theirs."""
    with torch.no_grad():
        found = model(rows.to(next(model.parameters()).device))
    return getattr(found, "logits", found).float().cpu()


def _same_logits(theirs: Any, rows: Tensor, ours: Tensor) -> str:
    difference, size = float((_logits(theirs, rows) - ours).abs().max()), float(ours.abs().max())
    if not difference <= FP32_BOUND * size:  # NaN is no proof
        raise ProofError(
            f"logits differ by {difference:.3g}, the largest being {size:.3g}: more than {FP32_BOUND:g} of it, "
            "which is what another order of sums can explain"
        )
    return f"same logits in fp32: {tuple(rows.shape)} ids, largest difference {difference:.1e} of {size:.3g}"


def _same_greedy_tokens(theirs: Any, model: Transformer, rows: Tensor) -> str:
    """Each token that transformers chooses, with its own cache, has our largest logit, or one as large up to the
    bound."""
    n_new = min(NEW_TOKENS, rows.shape[1] // 2)
    prompt = rows[:1, : rows.shape[1] - n_new]
    told = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        eos_token_id=-1,  # so that it does not stop
        pad_token_id=0,
    )
    logits = _logits(model, told)[0, prompt.shape[1] - 1 : -1]
    chosen = logits.gather(-1, told[0, prompt.shape[1] :, None]).squeeze(-1)
    short = logits.max(-1).values - chosen
    if len(short) != n_new or bool((short > 2 * FP32_BOUND * logits.abs().max()).any()):
        raise ProofError(f"transformers writes other tokens than ours: {told[0].tolist()}")
    return f"same {n_new} greedy tokens, through transformers' own generate()"


def _same_stored_logits(stored: Any, model: Transformer, rows: Tensor, exact: Tensor) -> str:
    """exact: our fp32 logits. The same rounding error as ours in that dtype, give or take."""
    rounded = copy.deepcopy(model).to(stored.dtype)
    cost = float((_logits(rounded, rows) - exact).square().mean().sqrt())
    difference = float((_logits(stored, rows) - exact).square().mean().sqrt())
    name = str(stored.dtype).removeprefix("torch.")
    if not difference <= STORED_BOUND * cost:
        raise ProofError(
            f"in {name} logits are {difference:.3g} off (root mean square), where our own model in {name} is "
            f"{cost:.3g} off: more than {STORED_BOUND} times as much"
        )
    return f"in {name}: {difference:.1e} from fp32 (root mean square), ours {cost:.1e}"
