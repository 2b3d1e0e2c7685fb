"""Text from a model whose vocabulary is larger than the tokenizer's, and folders without a tokenizer."""

from pathlib import Path

import pytest
import torch

from data_prep.config import TokenizerConfig
from data_prep.files import DataError
from data_prep.tokenizer import Tokenizer, train
from tests.train.sources import corpus_of
from tests.train.test_lineage import QUIET, start
from train.sample import SampleCommand, tokenizer_in, write_sample
from train.trace import Trace, _texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    text = "the quick brown fox jumps over the lazy dog\n" * 50
    return Tokenizer(train([text], TokenizerConfig(vocab_size=300)), "t")


def test_ids_beyond_the_tokenizer_are_shown_by_number(tokenizer: Tokenizer):
    padded = tokenizer.vocab_size + 7
    word = int(tokenizer.encode("fox")[-1])

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        """Padded ids and words in turn."""
        scores = torch.zeros(1, tokens.shape[1], tokenizer.vocab_size + 8)
        scores[0, -1, word if tokens[0, -1] == padded else padded] = 9
        return scores

    command = SampleCommand("runs/x", prompt="dog", n_tokens=3, temperature=0, table=2)
    text = write_sample(logits, tokenizer, command, context=16)
    assert text.startswith(f"dog#{padded}{tokenizer.decode([word])}#{padded}\n")
    assert f"%  #{padded}\n" in text


def test_without_a_tokenizer_it_is_said_that_there_is_no_text(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no tokenizer\.model: its tokens came from another program"):
        tokenizer_in(tmp_path)
    corpus = corpus_of(tmp_path, "a", [[20, 31]])
    uses = list(Trace(start([corpus], seq_len=8), [corpus], 7, QUIET, 3).step(1))
    with pytest.raises(DataError, match="came from another program"):
        list(_texts(uses, [corpus]))
