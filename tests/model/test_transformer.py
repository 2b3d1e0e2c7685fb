"""The network against an independent one: Hugging Face's Llama with the same weights, and torch in float64."""

import pytest
import torch

from model.attention import _attended, attention_mask
from model.config import ModelConfig
from model.init import initial_value, initialize
from model.loss import IGNORED_TARGET, cross_entropy
from model.names import Layout, place_of
from model.rope import rotary_tables, rotate
from model.transformer import Transformer

SMALL = ModelConfig(vocab_size=101, n_layers=3, d_model=48, n_heads=6, n_kv_heads=2, d_ff=80)


def made(config: ModelConfig, seed: int = 1) -> Transformer:
    model = Transformer(config)
    initialize(model, seed)
    return model


def llama(config: ModelConfig):
    transformers = pytest.importorskip("transformers", reason="the reference model comes with the test extra")
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_width,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
        )
    )


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        ModelConfig(vocab_size=101, n_layers=2, d_model=48, n_heads=6, n_kv_heads=6, d_ff=80, tie_embeddings=False),
        ModelConfig(vocab_size=101, n_layers=2, d_model=48, n_heads=4, n_kv_heads=1, d_ff=80, head_dim=20),
        ModelConfig(
            vocab_size=101, n_layers=2, d_model=48, n_heads=6, n_kv_heads=3, d_ff=80, rope_theta=5e5, norm_eps=1e-3
        ),
    ],
    ids=["grouped, tied", "multi-head, untied", "multi-query, own head_dim", "other theta and eps"],
)
def test_logits_and_gradients_equal_hugging_face_llama(config: ModelConfig):
    """The same operations in another order: bounds are a few fp32 roundings of the largest value."""
    ours, theirs = made(config), llama(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.mul_(3)  # far from the tiny initial weights, so that every part of the network matters
            theirs.get_parameter(place_of(name, Layout.llama).name).copy_(parameter)
    tokens = torch.randint(0, config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(0))

    logits = ours(tokens[:, :-1])
    expected = theirs(tokens[:, :-1]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    nats, count = cross_entropy(logits, tokens[:, 1:])
    (nats / count).backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in ours.named_parameters():
        reference = theirs.get_parameter(place_of(name, Layout.llama).name).grad
        torch.testing.assert_close(
            parameter.grad, reference, rtol=2e-4, atol=2e-6 * float(reference.abs().max()) + 1e-9
        )


def test_fp32_logits_agree_with_float64():
    model, tokens = made(SMALL), torch.arange(40).view(1, 40)
    exact = made(SMALL).double()(tokens)
    torch.testing.assert_close(model(tokens).double(), exact, rtol=1e-4, atol=1e-5)


def test_no_position_sees_a_later_token():
    model, tokens = made(SMALL), torch.arange(20).view(1, 20)
    changed = tokens.clone()
    changed[0, 12:] = 7
    assert torch.equal(model(tokens)[0, :12], model(changed)[0, :12])
    assert not torch.equal(model(tokens)[0, 12:], model(changed)[0, 12:])


def test_rotation_keeps_length_and_depends_on_distance_only():
    cos, sin = rotary_tables(50, ModelConfig(d_model=64, n_heads=4), torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(3)).unbind(0)
    q, k = rotate(q.expand(1, 1, 50, 16), cos, sin), rotate(k.expand(1, 1, 50, 16), cos, sin)
    torch.testing.assert_close(q.norm(dim=-1), q[..., :1, :].norm(dim=-1).expand(1, 1, 50))
    scores = (q[0, 0] @ k[0, 0].T).diagonal(offset=-7)
    torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-5)


def test_initial_weights_follow_the_table():
    config = ModelConfig(vocab_size=512, n_layers=8, d_model=256, n_heads=4, n_kv_heads=4, d_ff=512)
    model = made(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert bool((parameter == 1).all()), name
        else:
            depth_scaled = name.endswith(("attention.o.weight", "mlp.down.weight"))
            expected = config.init_std / (16**0.5 if depth_scaled else 1)
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.03), name


def test_initial_weights_depend_on_seed_and_name_alone():
    shape = torch.Size([8, 8])
    assert torch.equal(initial_value("a.weight", shape, SMALL, 1), initial_value("a.weight", shape, SMALL, 1))
    assert not torch.equal(initial_value("a.weight", shape, SMALL, 1), initial_value("a.weight", shape, SMALL, 2))
    assert not torch.equal(initial_value("a.weight", shape, SMALL, 1), initial_value("b.weight", shape, SMALL, 1))


def test_the_first_loss_is_that_of_a_uniform_guess():
    config = ModelConfig()
    tokens = torch.randint(0, config.vocab_size, (2, 65), generator=torch.Generator().manual_seed(0))
    nats, count = cross_entropy(made(config)(tokens[:, :-1]), tokens[:, 1:])
    assert float((nats / count).detach()) == pytest.approx(torch.tensor(config.vocab_size).log().item(), rel=0.01)


def test_positions_without_a_target_count_nothing():
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, IGNORED_TARGET, 3], [IGNORED_TARGET] * 3])
    nats, count = cross_entropy(logits, targets)
    by_hand = -(logits[0, 0].log_softmax(-1)[1] + logits[0, 2].log_softmax(-1)[3])
    assert int(count) == 2
    torch.testing.assert_close(nats, by_hand)


def in_documents(*lengths: int) -> torch.Tensor:
    """(1, T) segment numbers of documents of these lengths."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).view(1, -1)


def test_with_segments_a_document_never_sees_another_to_the_bit():
    model, tokens, segments = made(SMALL), torch.arange(24).view(1, 24), in_documents(7, 12, 5)
    changed = tokens.clone()
    changed[0, :7] = 50
    expected, found = model(tokens, segments), model(changed, segments)
    assert torch.equal(expected[0, 7:], found[0, 7:])
    assert not torch.equal(expected[0, :7], found[0, :7])
    assert not torch.equal(model(tokens)[0, 7:], model(changed)[0, 7:])  # without segments it does


def test_documents_packed_with_segments_give_what_each_gives_alone():
    """Rotary positions need no reset: only their distances count. The sums run over other lengths, hence roundings."""
    model, tokens = made(SMALL), torch.arange(24).view(1, 24)
    packed = model(tokens, in_documents(7, 12, 5))
    alone = torch.cat([model(tokens[:, a:b]) for a, b in [(0, 7), (7, 19), (19, 24)]], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    packed.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone.square().sum().backward()
    for name, parameter in model.named_parameters():
        bound = 1e-5 * float(gradients[name].abs().max())
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=bound)


def test_one_segment_is_plain_causal_attention():
    model, tokens = made(SMALL), torch.arange(24).view(1, 24)
    torch.testing.assert_close(model(tokens, in_documents(24)), model(tokens), rtol=1e-5, atol=1e-6)


def test_repeated_keys_give_what_groups_give():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 24, 8, generator=generator, requires_grad=True) for heads in (6, 2, 2))
    mask = attention_mask(24, in_documents(7, 12, 5), None, torch.device("cpu"))
    grouped = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    expected = torch.autograd.grad(grouped.square().sum(), (q, k, v))
    ours = _attended(q, k, v, mask, 8**-0.5)
    torch.testing.assert_close(ours, grouped)
    torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), (q, k, v)), expected)
