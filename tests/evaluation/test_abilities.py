"""Reconstruction and the prompt test against their formulas, written out on the model."""

import pytest
import torch

pytest.importorskip("transformers")

from dllm_kernels import LDLM
from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.evaluation.abilities import prompt_losses, prompt_shares, reconstructed
from dllm_kernels.model.encoder import Encoder
from tests.evaluation.words import save_encoder, save_model

TOKENS = torch.randint(4, 101, (5, 13), generator=torch.Generator().manual_seed(0))
PROMPTS = torch.randint(4, 101, (5, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return LDLM.from_pretrained(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder(save_encoder(tmp_path_factory.mktemp("encoder")), device="cpu")


@torch.no_grad()
def test_reconstruction_counts_the_tokens_that_come_back(model, encoder):
    given_back = model.logits(model.decode(model.encode(encoder(TOKENS)))).argmax(-1)
    assert reconstructed(model, encoder, TOKENS, batch_size=2) == float((given_back == TOKENS).double().mean())
    # A model whose lm_head prefers one token gives back exactly the places that hold it.
    fixed = LDLM(model.config)
    fixed.load_state_dict(model.state_dict())
    fixed.lm_head.bias[int(TOKENS[0, 0])] = 1e6
    assert reconstructed(fixed, encoder, TOKENS) == float((TOKENS[0, 0] == TOKENS).double().mean()) > 0


@torch.no_grad()
def test_losses_are_those_of_the_formula(model, encoder):
    found = prompt_losses(model, encoder, PROMPTS, TOKENS, batch_size=2, seed=3)
    schedule = NoiseSchedule.from_config(model.config)
    noise = torch.randn(8, 1, 13, 64, generator=torch.Generator().manual_seed(3))

    def loss(prompt, tokens):
        z0, total = model.encode(encoder(tokens[None])), 0.0
        context = None if prompt is None else encoder(prompt[None])
        for i in range(8):
            t = (i + 0.5) / 8
            z = float(schedule.alpha(t)) * z0 + float(schedule.sigma(t)) * noise[i]
            total += float((model.denoise(z, torch.tensor([t]), None, context) - z0).double().square().mean()) / 8
        return total

    for i in range(5):
        j = (i + 1) % 5
        assert found["own"][i].item() == pytest.approx(loss(PROMPTS[i], TOKENS[i]), rel=1e-4)
        assert found["other_continuation"][i].item() == pytest.approx(loss(PROMPTS[i], TOKENS[j]), rel=1e-4)
        assert found["other_prompt"][i].item() == pytest.approx(loss(PROMPTS[j], TOKENS[i]), rel=1e-4)
        assert found["no_prompt"][i].item() == pytest.approx(loss(None, TOKENS[i]), rel=1e-4)
    assert (found["own"] - found["other_prompt"]).abs().min() > 1e-4


def test_shares():
    losses = {
        "own": torch.tensor([1.0, 3.0, 2.0, 1.0]),
        "other_continuation": torch.tensor([2.0, 2.0, 3.0, 0.5]),
        "other_prompt": torch.tensor([2.0, 2.0, 2.0, 2.0]),
        "no_prompt": torch.tensor([1.5, 3.5, 2.5, 1.0]),
    }
    # lift: -0.5, -0.5, -0.5, 0 against 2 - 3.5, 2 - 2.5, 3 - 1, 0.5 - 1.5.
    assert prompt_shares(losses) == {"continuations": 0.5, "lift": 0.25, "prompts": 0.5}
