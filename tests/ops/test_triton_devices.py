"""Triton launches on the current card, so every op makes its tensors' card the current one first."""

import pytest
import torch

from dllm_kernels.ops.attention.op import attention
from dllm_kernels.ops.denoise_update.op import DenoiseUpdate, denoise_update
from dllm_kernels.ops.lm_head.op import lm_head
from dllm_kernels.ops.modulate.op import modulate
from dllm_kernels.ops.noise.op import initial_noise


def values(*shape: int, dtype=torch.float32, device) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def numbers(device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(3, device=device), torch.tensor(5, device=device)


def attended(device) -> torch.Tensor:
    q = values(1, 3, 2, 16, dtype=torch.bfloat16, device=device)
    return attention(q, q, q, backend="triton")


def gradient(device) -> torch.Tensor:
    q = values(1, 3, 2, 16, dtype=torch.bfloat16, device=device).requires_grad_()
    attention(q, q, q, backend="triton").float().square().sum().backward()
    return q.grad


def tokens(device) -> torch.Tensor:
    hidden, weight = (values(*shape, dtype=torch.bfloat16, device=device) for shape in ((1, 3, 16), (40, 16)))
    temperature = torch.tensor(0.7, device=device)
    return lm_head(hidden, weight, values(40, device=device), temperature, *numbers(device), backend="triton")[0]


def updated(device) -> torch.Tensor:
    latents, prediction = values(1, 3, 8, device=device), values(1, 3, 8, device=device)
    coefficients = torch.tensor([[0.5, 0.25, 0.0, 0.125]], device=device)
    next_input = torch.empty(1, 3, 8, device=device)
    denoise_update(DenoiseUpdate(latents, prediction, None, next_input, coefficients, 0, *numbers(device), backend="triton"))
    return next_input


CALLS = {
    "modulate": lambda device: modulate(values(1, 3, 16, device=device), backend="triton"),
    "initial_noise": lambda device: initial_noise(*numbers(device), 1, 3, 8, torch.float32, backend="triton"),
    "attention": attended,
    "attention_backward": gradient,
    "lm_head": tokens,
    "denoise_update": updated,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_tensors_card_is_made_the_current_one(name, device, monkeypatch):
    made, device_of = [], torch.cuda.device_of

    def recording(tensor):
        made.append(tensor.device.type)
        return device_of(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", recording)
    CALLS[name](device)
    assert made == [device.type] * (2 if name == "attention_backward" else 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA cards")
@pytest.mark.parametrize("name", CALLS)
def test_on_a_second_card(name):
    assert torch.cuda.current_device() == 0
    found = CALLS[name]("cuda:1")
    assert found.device.index == 1 and torch.equal(found.cpu(), CALLS[name]("cuda:0").cpu())
    assert torch.cuda.current_device() == 0
