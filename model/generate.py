"""Text from a model, one token at a time. The whole context is run again for each token: simple, and short enough
here.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def next_token_probabilities(logits: Callable[[Tensor], Tensor], tokens: list[int], context: int) -> Tensor:
    """Probabilities (V,) fp32 on the CPU of the token that follows `tokens`; at most the last `context` are seen."""
    with torch.no_grad():
        window = torch.tensor([tokens[-context:]])
        return logits(window)[0, -1].float().softmax(-1).cpu()


def generate(
    logits: Callable[[Tensor], Tensor],
    prompt: list[int],
    *,
    n_tokens: int,
    context: int,
    temperature: float,
    seed: int,
    stop_id: int,
) -> Iterator[int]:
    """Yields up to `n_tokens` ids drawn after `prompt`, and ends early at `stop_id`.

    logits: maps (1, T) int64 on the CPU to (1, T, V). temperature 0 takes the likeliest token each time.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(n_tokens):
        probabilities = next_token_probabilities(logits, tokens, context)
        if temperature == 0:
            token = int(probabilities.argmax())
        else:
            scaled = probabilities.log().div(temperature).softmax(-1)
            token = int(torch.multinomial(scaled, 1, generator=generator))
        if token == stop_id:
            return
        tokens.append(token)
        yield token
