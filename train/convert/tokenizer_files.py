"""A SentencePiece model as files that `AutoTokenizer` reads, proved by ids.

`transformers` rebuilds every SentencePiece model as its own kind of BPE from tokenizer.model and these settings: with
its own defaults it puts a blank before each text, and reads `</s>` inside a text as a control symbol. A unigram model
comes out wrong, with no warning. So: settings in full, and then ids of odd texts on both sides.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.files import publish_bytes, publish_json
from data_prep.manifest import TOKENIZER
from data_prep.tokenizer import BLANK_MARK, Tokenizer
from train.convert.proof import ProofError, quiet

ODD = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t",
    "\r\n",
    " a",
    "a ",
    "a  b   c",
    "    indented\n\tcode()\n",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "a<s>b</s>c",
    "<0x0A>",
    "[INST]",
    "<|endoftext|>",
    "1234567890 3.14",
    "naïve café",
    "e\u0301 is é",
    "ﬁ ² Ⅳ ｆｕｌｌ",
    "漢字かな 한국어",
    "עברית العربية",
    "🙂👩‍👩‍👧",
    "\u0000\u0007\u001b",
    "\u00a0\u2003\u200b\ufeff",
    "\ud7ff\ue000\U0010ffff",
    "The quick brown fox.",
)
N_RANDOM = 40


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """tokenizer.model, tokenizer_config.json and tokenizer.json, the last one made by transformers from the others."""
    publish_bytes(folder / TOKENIZER, tokenizer.content)
    publish_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, context))
    _auto(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    ids = {"unk": tokenizer.unk_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": True,  # a text that spells </s> is text
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **{f"{name}_token": tokenizer.piece(id) if id >= 0 else None for name, id in ids.items()},
    }


def special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """For config.json and generation_config.json: stated even where there is none, or Llama's would be taken."""
    known = (-1, -1, -1) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: id if id >= 0 else None for name, id in zip(names, known, strict=True)}


def prove_ids(folder: Path, tokenizer: Tokenizer) -> str:
    """Of a folder that we wrote: ids, the text back, control symbols. Raises ProofError that shows the first text for
    which `AutoTokenizer` gives something else."""
    theirs, texts = _auto(folder), list(probes(tokenizer))
    for text in texts:
        found = _same_ids(theirs, tokenizer, text)
        back = theirs.decode(found, skip_special_tokens=True)
        if back != tokenizer.decode(found):
            raise ProofError(f"AutoTokenizer turns the ids of {text!r} into {back!r}")
    symbols = {f"{name}_token_id": getattr(theirs, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if symbols != (expected := special_ids(tokenizer)):
        raise ProofError(f"AutoTokenizer has the control symbols {symbols}, the tokenizer has {expected}")
    return f"same ids from AutoTokenizer for {len(texts)} texts (U+2581 excepted: it is read as a blank there)"


def prove_their_ids(folder: Path, tokenizer: Tokenizer) -> str:
    """Of a folder by others, which may add control symbols to a text and read them out of one: of the text alone."""
    theirs, texts = _auto(folder), list(probes(tokenizer))
    for text in texts:
        _same_ids(theirs, tokenizer, text, add_special_tokens=False, split_special_tokens=True)
    return f"tokenizer.model gives the ids of AutoTokenizer for {len(texts)} texts, control symbols aside"


def _same_ids(theirs: Any, tokenizer: Tokenizer, text: str, **how: bool) -> list[int]:
    expected, found = tokenizer.encode(text).tolist(), list(theirs(text, **how)["input_ids"])
    if expected != found:
        raise ProofError(
            f"AutoTokenizer gives other ids than SentencePiece for {text[:60]!r}: {found[:12]} instead of "
            f"{expected[:12]}. (transformers rebuilds every SentencePiece model as BPE, so those of "
            "tokenizer.model_type=unigram come out wrong.) To convert the weights alone: tokenizer=false"
        )
    return found


def probes(tokenizer: Tokenizer) -> Iterator[str]:
    """Odd texts, every piece of the vocabulary beside its neighbours, and random characters."""
    yield from ODD
    pieces = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
    for start in range(0, len(pieces), 40):
        yield "".join(piece for piece in pieces[start : start + 40] if "\ufffd" not in piece)
    rng = random.Random(0)
    for _ in range(N_RANDOM):
        text = "".join(chr(rng.choice((rng.randrange(0x20, 0x7F), rng.randrange(0x2600)))) for _ in range(60))
        yield text.replace(BLANK_MARK, "")


def _auto(folder: Path) -> Any:
    with quiet() as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever it is, it is a no
            raise ProofError(f"AutoTokenizer cannot load {folder}: {type(error).__name__}: {error}") from error
