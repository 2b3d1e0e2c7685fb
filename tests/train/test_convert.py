"""Weights to Hugging Face and back: against tiny models that transformers made itself, and folders that are wrong."""

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.check import to_yaml
from conf.compose import compose
from conf.errors import ConfigError
from data_prep.config import ModelType, TokenizerConfig
from data_prep.files import DataError
from data_prep.tokenizer import Tokenizer, train
from model.config import Bias, Init, Mlp, ModelConfig, Norm, Positions, Residual, RopeScaling, Scaling
from model.init import initialize
from model.names import Layout, parts_of, place_of, their_shape
from model.transformer import Transformer
from tests.corpus import document
from train.__main__ import APP as TRAIN_APP
from train.convert.__main__ import run
from train.convert.command import ConvertCommand, Dtype
from train.convert.layouts import config_json, layout_for
from train.convert.proof import ProofError, prove
from train.convert.sinks import write_weights
from train.convert.sources import Source
from train.convert.tokenizer_files import prove_ids, write_tokenizer
from train.convert.understood import understood
from train.weights import open_weights, shapes_of, start_problems, start_weights

transformers = pytest.importorskip("transformers", reason="the reference comes with the test extra")

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
THETA = {"rope_type": "default", "rope_theta": 5e5}
GPT2 = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 48,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def theirs(kind: str, **options: Any) -> Any:
    """A tiny model with random weights (biases and norms too), large enough that every part of it moves the logits."""
    config_type, model_type = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    }[kind]
    usual = GPT2 if kind == "gpt2" else SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 128}
    model = model_type(config_type(**(usual | options)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def convert(source: Path, out: Path, **options: Any) -> Path:
    run(ConvertCommand(str(source), str(out), **options))
    return out


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def assert_equal_tensors(one: Path, other: Path) -> None:
    mine, its = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert mine.keys() == its.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == its[name].dtype, name
        assert torch.equal(tensor, its[name]), name


def ours(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    initialize(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return model


def weights_folder(out: Path, config: ModelConfig, tokenizer: Tokenizer | None = None) -> Path:
    """A folder of ours with random weights."""
    parameters = dict(ours(config).named_parameters())
    source = Source(
        model=config,
        read=lambda name: parameters[name].detach(),
        context=config.max_positions or 64,
        ids={"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        tokenizer=tokenizer,
        passed_on={},
        tokenizers=(tokenizer.sha256,) if tokenizer else (),
        layout=None,
        notes=(),
    )
    write_weights(source, ConvertCommand(source="", out=str(out)))
    return out


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [document(random.Random(i)) for i in range(30)]
    return Tokenizer(train(texts, TokenizerConfig(vocab_size=360)), "a test's")


# --- both ways, every layout


@pytest.mark.parametrize(
    "model",
    [
        lambda: theirs("llama", rope_parameters=LLAMA3, rms_norm_eps=1e-3),
        lambda: theirs("llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True, num_key_value_heads=1),
        lambda: theirs("qwen3", tie_word_embeddings=True, head_dim=12, rope_parameters=THETA),
        lambda: theirs("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=0),
        lambda: theirs("mistral", head_dim=6, sliding_window=11),
        lambda: theirs("gpt2").to(torch.bfloat16),
        lambda: theirs("gpt2", n_inner=40, activation_function="gelu", tie_word_embeddings=False),
    ],
    ids=["llama scaled", "llama tied biased", "qwen3", "qwen2 window", "mistral window", "gpt2 bf16", "gpt2 untied"],
)
def test_a_model_of_transformers_comes_in_and_goes_out_equal_to_the_bit(model: Callable[[], Any], tmp_path: Path):
    """Coming in, its logits, configuration and greedy tokens are compared with transformers'; going out, again."""
    model().save_pretrained(tmp_path / "hf")
    weights = convert(tmp_path / "hf", tmp_path / "weights")
    again = convert(weights, tmp_path / "again")
    assert_equal_tensors(tmp_path / "hf", again)


OURS = {
    "llama": ModelConfig(vocab_size=61, n_layers=2, d_model=32, d_ff=40, rope_theta=3e4),
    "llama ntk": ModelConfig(
        vocab_size=61, n_layers=2, d_model=32, d_ff=40, rope_scaling=RopeScaling(kind=Scaling.ntk, factor=4.0)
    ),
    "llama yarn": ModelConfig(
        vocab_size=61,
        n_layers=2,
        d_model=32,
        d_ff=40,
        rope_scaling=RopeScaling(kind=Scaling.yarn, factor=4.0, original_context=16),
    ),
    "llama linear": ModelConfig(
        vocab_size=61, n_layers=2, d_model=32, d_ff=40, rope_scaling=RopeScaling(kind=Scaling.linear, factor=2.0)
    ),
    "mistral": ModelConfig(vocab_size=61, n_layers=2, d_model=32, n_heads=3, n_kv_heads=1, head_dim=10, d_ff=40),
    "qwen3": ModelConfig(
        vocab_size=61, n_layers=2, d_model=32, d_ff=40, qk_norm=True, sliding_window=7, tie_embeddings=False
    ),
    "qwen2": ModelConfig(vocab_size=61, n_layers=2, d_model=32, d_ff=40, bias=Bias.qkv),
    "gpt2": ModelConfig(
        vocab_size=61,
        n_layers=2,
        d_model=32,
        n_kv_heads=4,
        d_ff=40,
        norm=Norm.layernorm,
        mlp=Mlp.gelu_tanh,
        bias=Bias.all,
        positions=Positions.learned,
        max_positions=24,
    ),
}


@pytest.mark.parametrize("kind", OURS)
def test_a_model_of_ours_goes_out_and_comes_back_equal_to_the_bit(kind: str, tmp_path: Path):
    config = OURS[kind]
    start = weights_folder(tmp_path / "start", config)
    hf = convert(start, tmp_path / "hf")
    assert read(hf / "config.json")["model_type"] == kind.split()[0]
    back = convert(hf, tmp_path / "back")
    assert_equal_tensors(start, back)
    if kind != "llama ntk":  # it comes back as the base that gives the same frequencies
        assert (back / "model.yaml").read_text() == to_yaml(config)


def test_bf16_is_what_rounding_gives_and_is_proved_in_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start = weights_folder(tmp_path / "start", OURS["llama"])
    hf = convert(start, tmp_path / "hf", dtype=Dtype.bf16)
    stored, exact = load_file(hf / "model.safetensors"), load_file(start / "model.safetensors")
    assert torch.equal(stored["model.norm.weight"], exact["norm.weight"].bfloat16())
    assert read(hf / "config.json")["dtype"] == read(hf / "config.json")["torch_dtype"] == "bfloat16"
    assert "in bfloat16" in capsys.readouterr().out


def test_large_models_are_cut_into_files_with_an_index(tmp_path: Path):
    start = weights_folder(tmp_path / "start", OURS["llama"])
    hf = convert(start, tmp_path / "hf", shard_bytes=20_000)
    index = read(hf / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in load_file(start / "model.safetensors").values())
    assert_equal_tensors(start, convert(hf, tmp_path / "back"))
    (hf / sorted(index["weight_map"].values())[1]).unlink()
    with pytest.raises(DataError, match="missing"):
        convert(hf, tmp_path / "never")


def test_gpt2_as_it_was_first_published_is_read(tmp_path: Path):
    """Names without `transformer.`, causal masks among the tensors, fields of 2019."""
    theirs("gpt2").save_pretrained(tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 48, 48).tril() for i in range(2)}
    shutil.copytree(tmp_path / "hf", tmp_path / "old")
    save_file(old, tmp_path / "old" / "model.safetensors")
    fields = read(tmp_path / "hf" / "config.json")
    for name in ("tie_word_embeddings", "n_inner", "scale_attn_weights", "add_cross_attention", "dtype"):
        del fields[name]
    (tmp_path / "old" / "config.json").write_text(json.dumps(fields | {"n_ctx": 48}))
    assert_equal_tensors(convert(tmp_path / "hf", tmp_path / "a"), convert(tmp_path / "old", tmp_path / "b"))


def test_each_parameter_has_one_place_and_each_place_is_filled():
    for kind, config in OURS.items():
        layout, shapes = Layout(kind.split()[0]), shapes_of(config)
        for names in parts_of(shapes, layout).values():
            places = [place_of(name, layout) for name in names]
            assert [place.part for place in places] == list(range(places[0].parts))
            assert len({their_shape(shapes[name], place) for name, place in zip(names, places, strict=True)}) == 1
    with pytest.raises(KeyError, match="position"):
        place_of("position.weight", Layout.llama)


# --- what cannot be expressed


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"logit_softcap": 30.0}, "logit_softcap"),
        ({"attention_softcap": 50.0}, "attention_softcap"),
        ({"residual": Residual.parallel}, "residual"),
        ({"rotary_fraction": 0.25}, "rotary_fraction"),
        ({"init": Init.mup, "mup_base_width": 32}, "init=mup"),
        ({"norm": Norm.layernorm}, "norm=layernorm"),
        ({"qk_norm": True, "bias": Bias.qkv}, "bias=qkv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_that_no_layout_has_is_refused_by_name(option: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        layout_for(ModelConfig(**option), None)


def test_a_layout_asked_for_must_express_the_model():
    assert layout_for(OURS["llama"], Layout.mistral) == Layout.mistral
    with pytest.raises(ConfigError, match=r"layout=llama cannot express model\.sliding_window=7"):
        layout_for(OURS["qwen3"], Layout.llama)


# --- folders that are wrong


def config_without(*names: str, **changes: Any) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        fields = {k: v for k, v in read(folder / "config.json").items() if k not in names}
        (folder / "config.json").write_text(json.dumps(fields | changes))

    return tamper


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return tamper


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


Q, EMBEDDING = "model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"
FAULTS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "misnamed tensor": (tensors_changed(lambda t: t.update({Q.replace("q_", "query_"): t.pop(Q)})), True),
    "missing tensor": (tensors_changed(lambda t: t.pop(Q)), True),
    "rope_theta forgotten": (config_without("rope_theta", "rope_scaling", "rope_parameters"), True),
    "tie flag wrong": (config_without(tie_word_embeddings=False), True),
    "wrong kv-head count": (config_without(num_key_value_heads=4), True),
    "truncated file": (cut, True),
    "unknown field": (config_without(attention_sinks=4), True),
    "one number": (tensors_changed(lambda t: t[Q].view(-1)[5:6].add_(1e-6)), False),
    "another eps": (config_without(rms_norm_eps=1e-6), False),
    "another theta": (
        config_without("rope_scaling", rope_theta=4e4, rope_parameters={"rope_type": "default", "rope_theta": 4e4}),
        False,
    ),
    "scaling": (
        config_without("rope_scaling", rope_parameters={"rope_type": "linear", "rope_theta": 3e4, "factor": 2.0}),
        False,
    ),
    "NaN": (tensors_changed(lambda t: t[EMBEDDING].view(-1)[:1].fill_(float("nan"))), False),
}
"""how a folder is spoilt; and whether it can be seen without the model it was made from"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    return convert(weights_folder(folder / "start", OURS["llama"]), folder / "hf")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_wrong_is_never_called_right(fault: str, exported: Path, tmp_path: Path):
    """transformers loads most of these without an error."""
    tamper, visible = FAULTS[fault]
    shutil.copytree(exported, tmp_path / "hf")
    tamper(tmp_path / "hf")
    with pytest.raises((ProofError, DataError)):
        prove(tmp_path / "hf", ours(OURS["llama"]), Layout.llama)
    if visible:
        with pytest.raises((ProofError, DataError)):
            convert(tmp_path / "hf", tmp_path / "weights")
        assert {path.name for path in tmp_path.iterdir()} == {"hf"}  # nothing that looks finished, or half


def test_the_untouched_folder_is_right(exported: Path):
    assert len(prove(exported, ours(OURS["llama"]), Layout.llama)) == 3


PLAIN = config_json(OURS["llama"], Layout.llama, context=64, dtype="float32", ids={})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma2"}, "known are llama, qwen3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "known are default, linear"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradict"),
        ({"rope_theta": 1e6}, "which one is meant"),
        ({"rope_theta": None, "rope_parameters": None}, "would take 10000"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 3e4, "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_theta": 3e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "relu2"}, "hidden_act"),
        ({"attention_bias": True}, "all or none"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 33, "head_dim": None}, "does not divide"),
        ({"vocab_size": "many"}, "an integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_configuration_asks_for_and_we_do_not_have_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(DataError, match=words):
        understood(PLAIN | changes)


def test_what_is_not_stated_is_told_and_what_is_unknown_can_be_named():
    found = understood(
        {k: v for k, v in PLAIN.items() if k not in ("tie_word_embeddings", "num_key_value_heads")} | {"mark": 3},
        ignored=["mark"],
    )
    assert (found.model.tie_embeddings, found.model.n_kv_heads) == (False, 4)
    assert [note.split("`")[1] for note in found.notes] == ["num_key_value_heads", "tie_word_embeddings", "mark"]


def test_qwen_layers_slide_all_or_none():
    qwen = config_json(OURS["qwen3"], Layout.qwen3, context=64, dtype="float32", ids={})
    assert understood(qwen).model.sliding_window == 7
    assert understood(qwen | {"use_sliding_window": False, "layer_types": None}).model.sliding_window is None
    with pytest.raises(DataError, match="all layers slide, or none"):
        understood(qwen | {"layer_types": None, "max_window_layers": 1})


def test_a_pickle_is_never_opened(exported: Path, tmp_path: Path):
    shutil.copytree(exported, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(DataError, match="pickle"):
        convert(tmp_path / "hf", tmp_path / "weights")


def test_a_folder_with_something_in_it_is_not_written_into(exported: Path, tmp_path: Path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        convert(exported, tmp_path)
    (tmp_path / "empty").mkdir()
    convert(exported, tmp_path / "empty")


def test_without_transformers_nothing_is_called_ok(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    weights = convert(exported, tmp_path / "weights")
    assert "NOT checked against transformers" in capsys.readouterr().out
    with pytest.raises(DataError, match="not installed"):
        convert(weights, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_options_without_effect_are_refused(exported: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="step=3 is for a run"):
        convert(exported, tmp_path / "out", step=3)
    with pytest.raises(ConfigError, match="layout=llama is for a Hugging Face folder"):
        convert(exported, tmp_path / "out", layout=Layout.llama)


# --- tokenizers


def test_auto_tokenizer_gives_the_ids_of_sentencepiece(tokenizer: Tokenizer, tmp_path: Path):
    write_tokenizer(tmp_path, tokenizer, 64)
    assert "same ids" in prove_ids(tmp_path, tokenizer)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "  The old </s> river\n\n\tcounts 1024 — 漢字\n"
    assert auto(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert auto.decode(auto(text)["input_ids"], skip_special_tokens=True) == text
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (1, 2, 3)


def test_a_model_that_transformers_rebuilds_wrongly_is_refused(tmp_path: Path):
    texts = [document(random.Random(i)) for i in range(30)]
    unigram = Tokenizer(train(texts, TokenizerConfig(vocab_size=340, model_type=ModelType.unigram)), "a test's")
    write_tokenizer(tmp_path, unigram, 64)
    with pytest.raises(ProofError, match="unigram"):
        prove_ids(tmp_path, unigram)


def test_a_tokenizer_exchanged_is_noticed(tokenizer: Tokenizer, tmp_path: Path):
    other = Tokenizer(train(["completely other words here"] * 9, TokenizerConfig(vocab_size=290)), "another")
    config = ModelConfig(vocab_size=400, n_layers=1, d_model=32, d_ff=40)  # rows above the tokenizer's: padding
    hf = convert(weights_folder(tmp_path / "start", config, tokenizer), tmp_path / "hf")
    assert (hf / "tokenizer.model").read_bytes() == tokenizer.content
    (hf / "tokenizer.model").write_bytes(other.content)
    with pytest.raises(ProofError, match="other ids"):
        convert(hf, tmp_path / "back")
    back = convert(hf, tmp_path / "back", tokenizer=False)
    assert open_weights(back, every_byte=True).tokenizers == ()


def test_a_padded_vocabulary_keeps_its_rows(tokenizer: Tokenizer, tmp_path: Path):
    config = ModelConfig(vocab_size=400, n_layers=1, d_model=32, d_ff=40)
    start = weights_folder(tmp_path / "start", config, tokenizer)
    hf = convert(start, tmp_path / "hf")
    assert len(transformers.AutoTokenizer.from_pretrained(hf)) == 360
    fields = read(hf / "config.json")
    assert (fields["vocab_size"], fields["pad_token_id"]) == (400, None)
    back = convert(hf, tmp_path / "back")
    assert_equal_tensors(start, back)
    assert tokenizer.sha256 in open_weights(back, every_byte=True).tokenizers


# --- a folder that a run can start from


def test_initial_weights_are_those_of_the_folder(tmp_path: Path):
    folder = weights_folder(tmp_path / "weights", OURS["gpt2"])
    initial, expected = start_weights(folder), dict(ours(OURS["gpt2"]).named_parameters())
    for name, parameter in expected.items():
        assert torch.equal(initial(name, parameter.shape), parameter)
    with pytest.raises(DataError, match=r"head\.weight not at all"):
        initial("head.weight", torch.Size([61, 32]))
    with pytest.raises(DataError, match=r"norm\.weight in the shape \(32,\)"):
        initial("norm.weight", torch.Size([33]))


def test_every_difference_between_run_and_folder_is_listed(tmp_path: Path):
    folder = weights_folder(tmp_path / "weights", OURS["llama"])
    same = ModelConfig(**(vars(OURS["llama"]) | {"head_dim": 8, "init_std": 0.5, "init": Init.scaled}))
    assert start_problems(folder, same, "any", every_byte=True) == []
    other = ModelConfig(vocab_size=61, n_layers=2, d_model=32, d_ff=44, rope_theta=1e4)
    (problem,) = start_problems(folder, other, "any", every_byte=True)
    assert "model.d_ff is 40 there, 44 here, model.rope_theta is 30000.0 there, 10000.0 here" in problem
    words = problem.split("What fits: ")[1].strip("'")
    assert compose(TRAIN_APP, [words, "run.name=x"]).model == OURS["llama"]


def test_a_folder_altered_or_incomplete_is_refused(tmp_path: Path):
    folder = weights_folder(tmp_path / "weights", OURS["llama"])
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="altered"):
        open_weights(folder, every_byte=True)
    (folder / "model.safetensors").write_bytes(content[:-4])
    with pytest.raises(DataError, match="bytes"):
        open_weights(folder, every_byte=False)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="missing"):
        open_weights(folder, every_byte=False)
