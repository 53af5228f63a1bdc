"""The frozen encoder against the whole model's hidden states, for each family that a preset or the demo needs."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dllm_kernels import LDLMConfig
from dllm_kernels.model.encoder import Encoder
from tests.threads import together
from tests.training.parts import refusal, save_tokenizer

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 71, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 48}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
MIXED = {"layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
VISION = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}


def config(family):
    """A small config of a family, with five layers."""
    qwen = SMALL | HEADS | LINEAR | MIXED
    return {
        "bert": lambda: transformers.BertConfig(**SMALL, max_position_embeddings=40),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=71, n_embd=32, n_layer=5, n_head=4, n_positions=40),
        "llama": lambda: transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
        "qwen3_5_text": lambda: transformers.Qwen3_5TextConfig(**qwen),
        "qwen3_5": lambda: transformers.Qwen3_5Config(text_config=qwen, vision_config=VISION),
        "qwen3_5_moe": lambda: transformers.Qwen3_5MoeConfig(text_config=qwen | EXPERTS, vision_config=VISION),
    }[family]()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def make(family):
        if family not in made:
            torch.manual_seed(3)
            model = transformers.AutoModel.from_config(config(family)).eval()
            for parameter in model.parameters():
                # Norms that start at one or zero would hide a missing or a doubled one.
                parameter.data.add_(0.1 * torch.randn_like(parameter) + 0.02)
            folder = tmp_path_factory.mktemp(family)
            model.save_pretrained(folder)
            made[family] = folder, model
        return made[family]

    return make


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9, 1, 4])
    return torch.randint(4, 71, (3, 9), generator=generator), torch.arange(9) < lengths.unsqueeze(1)


@torch.no_grad()
def whole(model, tokens, layer):
    """hidden_states[layer] of the whole model for one row without padding."""
    return model(input_ids=tokens.unsqueeze(0), output_hidden_states=True).hidden_states[layer][0]


FAMILIES = ("bert", "gpt2", "llama", "qwen3_5_text", "qwen3_5", "qwen3_5_moe")


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_the_whole_models(folders, family):
    folder, model = folders(family)
    encoder = Encoder(folder, -3, "cpu")
    tokens, mask = rows()
    hidden = encoder(tokens, mask, batch_size=2)
    assert hidden.shape == (3, 9, 32) and encoder.hidden_dim == 32 and encoder.vocab_size == 71
    for row, length in enumerate(mask.sum(1)):
        expected = whole(model, tokens[row, :length], -3)
        torch.testing.assert_close(hidden[row, :length], expected, rtol=2e-4, atol=2e-5)
        assert not hidden[row, length:].any()
    assert (hidden[mask].abs().amax(-1) > 0.05).all()
    # Two of five layers are not there.
    assert len(encoder._layers) == 3


@pytest.mark.parametrize("family", ("bert", "gpt2", "llama"))
@pytest.mark.parametrize("layer", (0, 1, 5, -1, -6))
def test_every_layer_can_be_read(folders, family, layer):
    folder, model = folders(family)
    tokens, mask = rows()
    hidden = Encoder(folder, layer, "cpu")(tokens, mask)
    torch.testing.assert_close(hidden[0], whole(model, tokens[0], layer), rtol=2e-4, atol=2e-5)


def test_a_row_of_padding_is_zero_and_padding_does_not_matter(folders):
    for family in ("gpt2", "qwen3_5_text"):
        encoder = Encoder(folders(family)[0], -3, "cpu")
        tokens, mask = rows()
        mask[1] = False
        hidden = encoder(tokens, mask)
        assert not hidden[1].any() and hidden[0].isfinite().all()
        torch.testing.assert_close(encoder(tokens.masked_fill(~mask, 70), mask), hidden)


def test_special_tokens_stand_around_each_row(folders, tmp_path):
    _, model = folders("bert")
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = Encoder(tmp_path, -3, "cpu")
    hidden, mask = encoder.encode(["w7 w9 w30", "w11"])
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    with_marks = whole(model, torch.tensor([2, 7, 9, 30, 3]), -3)
    torch.testing.assert_close(hidden[0], with_marks[1:4], rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(hidden[1, 0], whole(model, torch.tensor([2, 11, 3]), -3)[1], rtol=2e-4, atol=2e-5)
    assert encoder.max_tokens == 38 and encoder.end_token == 3 and encoder.pad_token == 0


def test_a_copy_holds_what_is_read_and_nothing_above(folders, tmp_path):
    folder, _ = folders("bert")
    encoder = Encoder(folder, -3, "cpu", torch.bfloat16)
    encoder.save(tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    numbers = {int(name.split("layer.")[1].split(".")[0]) for name in weights if "layer." in name}
    assert numbers == {0, 1, 2} and json.loads((tmp_path / "copy" / "config.json").read_text())["num_hidden_layers"] == 5
    tokens, mask = rows()
    again = Encoder(tmp_path / "copy", -3, "cpu", torch.bfloat16)
    assert torch.equal(again(tokens, mask), encoder(tokens, mask)) and again.identity() == encoder.identity()
    assert again(tokens, mask).dtype == torch.bfloat16
    relative = (again(tokens, mask).float() - Encoder(folder, -3, "cpu")(tokens, mask)).norm() / again(tokens, mask).norm()
    assert 1e-5 < relative < 0.03


def test_identity_tells_models_and_layers_apart(folders, tmp_path):
    folder, model = folders("bert")
    first = Encoder(folder, -3, "cpu").identity()
    assert Encoder(folder, -3, "cpu").identity() == first
    assert Encoder(folder, -2, "cpu").identity() != first
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias += 1e-3
        model.save_pretrained(tmp_path)
        model.encoder.layer[1].output.dense.bias -= 1e-3
    assert Encoder(tmp_path, -3, "cpu").identity() != first


@pytest.mark.parametrize("layer", (0, -3))
def test_threads_that_share_an_encoder_get_the_hidden_states_of_their_own_texts(folders, tmp_path, layer):
    folders("bert")[1].save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = Encoder(tmp_path, layer, "cpu")
    texts = [f"w{4 + i} w{20 + i}" for i in range(8)]
    expected = [encoder.encode([text])[0] for text in texts]
    found = together(8, lambda i: [encoder.encode([texts[i]])[0] for _ in range(8)])
    assert all(torch.equal(hidden, expected[i]) for i in range(8) for hidden in found[i])


def test_encoders_loaded_by_several_threads_leave_the_process_as_it_was(folders):
    folder, verbosity = folders("bert")[0], transformers.logging.get_verbosity()
    shown = transformers.utils.logging.is_progress_bar_enabled()
    encoders = together(4, lambda i: Encoder(folder, -2 - i, "cpu"))
    assert [encoder.layer for encoder in encoders] == [4, 3, 2, 1]
    assert (torch.get_default_dtype(), transformers.logging.get_verbosity()) == (torch.float32, verbosity)
    assert transformers.utils.logging.is_progress_bar_enabled() == shown


KERNELS = """
import sys
sys.path.insert(0, {stand_in!r})
import torch
from dllm_kernels.model.encoder import Encoder
encoder = Encoder({folder!r}, -3, "cpu")
module = sys.modules["transformers.models.qwen3_5.modeling_qwen3_5"]
tokens = torch.arange(4, 13).unsqueeze(0)
hidden = encoder(tokens)
try:
    encoder._model(input_ids=tokens)
except RuntimeError as error:
    print(str(error)[:16], encoder.linear_attention)
torch.save(hidden, {result!r})
"""


def test_the_pytorch_path_is_chosen_where_a_package_of_gpu_kernels_is_installed(folders, tmp_path):
    """A stand-in for flash-linear-attention that dies as the package does without a card (docs/training.md, "Encoder")."""
    folder, model = folders("qwen3_5_text")
    (tmp_path / "fla" / "ops").mkdir(parents=True)
    dies = "raise RuntimeError('0 active drivers ([]). There should only be one.')"
    names = ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule")
    body = "\n".join(f"def {name}(q, k, v, g, beta, **kwargs):\n    {dies}" for name in names)
    for package in ("__init__.py", "ops/__init__.py", "ops/gated_delta_rule.py"):
        (tmp_path / "fla" / package).write_text(body + "\n")
    code = KERNELS.format(stand_in=str(tmp_path), folder=str(folder), result=str(tmp_path / "hidden.pt"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split("\n")[0] == "0 active drivers PyTorch", result.stderr
    expected = whole(model, torch.arange(4, 13), -3)
    torch.testing.assert_close(torch.load(tmp_path / "hidden.pt")[0], expected, rtol=2e-4, atol=2e-5)


def test_what_computes_linear_attention_is_said(folders):
    assert Encoder(folders("bert")[0], -3, "cpu").linear_attention is None
    assert Encoder(folders("qwen3_5_text")[0], -3, "cpu").linear_attention == "PyTorch"


class TestBadInput:
    def test_paths(self, tmp_path):
        assert refusal(lambda: Encoder("./nowhere")) == "the encoder ./nowhere is not a folder, and not a hub id"
        assert refusal(lambda: Encoder(tmp_path)).startswith(f"the encoder {tmp_path} cannot be loaded: ")
        (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 16}')
        assert refusal(lambda: Encoder(tmp_path)).endswith("it must be a single stack of layers")

    def test_layers(self, folders):
        folder, _ = folders("bert")
        for layer in (6, -7):
            expected = f"the encoder {folder} has 5 layers; layer is {layer}, and must lie from -6 to 5"
            assert refusal(lambda layer=layer: Encoder(folder, layer, "cpu")) == expected

    def test_missing_weights(self, folders, tmp_path):
        from safetensors.torch import save_file

        folder, _ = folders("bert")
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if "layer.1.attention.self.query" not in name}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        assert "lacks weights: encoder.layer.1.attention.self.query.bias" in refusal(lambda: Encoder(tmp_path))

    def test_a_model_that_does_not_fit(self, folders):
        folder, _ = folders("bert")
        found = refusal(lambda: Encoder.for_model(LDLMConfig.preset("tiny", encoder=str(folder)), "cpu"))
        assert found == f"the encoder {folder} has hidden states of width 32, and the model's hidden_dim is 64"
        assert refusal(lambda: Encoder.for_model(LDLMConfig.preset("tiny"))) == "the model's config names no encoder"

    def test_texts(self, folders, tmp_path):
        folder, model = folders("bert")
        assert "has no tokenizer" in refusal(lambda: Encoder(folder, -3, "cpu").tokenize(["w4"]))
        model.save_pretrained(tmp_path)
        save_tokenizer(tmp_path)
        encoder = Encoder(tmp_path, -3, "cpu")
        assert refusal(lambda: encoder.encode(["w4", " "])) == "the text to encode is empty"
        assert refusal(lambda: encoder.encode([])) == "there is no text to encode"
        expected = f"a text of 39 tokens is too long; the encoder {tmp_path} reads up to 38"
        assert refusal(lambda: encoder.encode(["w4 " * 39])) == expected
        assert refusal(lambda: encoder(torch.zeros(1, 39, dtype=torch.long))) == expected
        tokens, mask = rows()
        assert "padding before a token" in refusal(lambda: encoder(tokens, mask.flip(1)))
        assert "it must be bool [3, 9]" in refusal(lambda: encoder(tokens, mask[:, :5]))
