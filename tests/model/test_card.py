"""The card beside a model's weights says what the model is."""

import pytest
from huggingface_hub import ModelCard

from dllm_kernels import LDLMConfig
from tests.models import randomized


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_every_line_is_filled_in(tmp_path, dtype):
    model = randomized(LDLMConfig.preset("tiny", seq_len=5, vocab_size=31, encoder="owner/encoder"))
    model.save_pretrained(tmp_path, dtype=dtype)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "dllm_kernels" and card.data.pipeline_tag == "text-generation"
    assert "More Information Needed" not in card.text
    assert f"with {sum(p.numel() for p in model.parameters()):,} parameters" in card.text
    assert "It writes 5 tokens at once." in card.text and "owner/encoder, hidden states -3." in card.text
    assert "**Prompts**: taken; they need the frozen encoder." in card.text


def test_a_model_without_prompts_says_so(tmp_path):
    config = LDLMConfig.preset("tiny", seq_len=5, vocab_size=31, trained_with_prompts=False)
    randomized(config).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "**Prompts**: not taken." in text and "**Frozen encoder**: none is named." in text
