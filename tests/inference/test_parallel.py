"""Tensor parallelism: two processes (gloo) are one within the numerics contract, for both architectures."""

import os
import socket

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from dllm_kernels import LDLM, LDLMConfig
from dllm_kernels.inference.parallel import parallel_plan, parallelize
from dllm_kernels.model.config import open_dllm_config
from tests.inference.reference_sampler import reference_sample
from tests.models import randomized
from tests.numerics import assert_contract

# 101 tokens and 18 latent features: what is split by outputs need not divide.
CONFIGS = {
    "ldlm": LDLMConfig.preset("tiny", seq_len=13, vocab_size=101, hidden_dim=48, latent_dim=18),
    "open-dllm": open_dllm_config(64, 101, 13, perceiver_layers=2, denoiser_layers=2),
    "open-dllm with proj_in": open_dllm_config(64, 101, 13, proj_in=True, perceiver_layers=1, denoiser_layers=2),
}
CASES = [(name, dtype) for name in CONFIGS for dtype in (torch.float32, torch.float64)]


def prompt(config, dtype):
    """A prompt's hidden states and mask where the config takes them."""
    if not config.context:
        return {}
    context = torch.randn(2, 6, config.hidden_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    return {"context": context.to(dtype), "context_mask": torch.arange(6) < torch.tensor([[4], [6]])}


def outputs(model):
    """Latents and logits of three steps, latents of encoding, and the gradients of a loss by every kind of layer."""
    config, dtype = model.config, next(p for p in model.parameters() if not isinstance(p, DTensor)).dtype
    latents, logits = reference_sample(model, 3, 2, seed=5, **prompt(config, dtype))
    hidden = torch.randn(2, 9, config.hidden_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    encoded = model.encode(hidden, torch.arange(9) < torch.tensor([[9], [5]]))
    z0 = model.denoise(encoded, torch.tensor([0.3, 0.7], dtype=dtype), None, **prompt(config, dtype))
    (z0.square().mean() + model.logits(model.decode(z0)).square().mean()).backward()
    learned = {"latents": model.latent_encoder.latents.grad, "norm": model.token_decoder.norm.weight.grad}
    return {"latents": latents, "logits": logits, "encoded": encoded} | {f"{k} grad": v for k, v in learned.items()}


def one_of_two(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name, dtype in CASES:
        model = parallelize(randomized(CONFIGS[name], dtype), mesh)
        split = {n: p.to_local().numel() / p.numel() for n, p in model.named_parameters() if isinstance(p, DTensor)}
        found = {key: value.detach() for key, value in outputs(model).items()}
        torch.save({"outputs": found, "split": split}, folder / f"{name}-{dtype}-{rank}.pt")
    torch.distributed.destroy_process_group()
    # gloo's threads may still free a tensor: where Python is finalizing by then, its lock ends the thread and C++ aborts.
    os._exit(0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, folder), nprocs=2)
    return {case: [torch.load(folder / f"{case[0]}-{case[1]}-{rank}.pt") for rank in range(2)] for case in CASES}


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_two_processes_are_one(two, name, dtype):
    exact = outputs(randomized(CONFIGS[name], torch.float64))
    alone = outputs(randomized(CONFIGS[name], dtype))
    for rank in range(2):
        found = two[name, dtype][rank]["outputs"]
        for key, value in found.items():
            if dtype == torch.float64:
                assert torch.allclose(value, exact[key], rtol=0, atol=1e-11 * float(exact[key].detach().abs().max())), key
            else:
                assert_contract(value, exact[key].detach().double(), alone[key])
            assert torch.equal(value, two[name, dtype][0]["outputs"][key]), key


@pytest.mark.parametrize("name", CONFIGS)
def test_every_large_weight_is_split(two, name):
    split = two[name, torch.float32][0]["split"]
    model = LDLM(CONFIGS[name])
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    whole = {n for n in linears if f"{n}.weight" not in split}
    assert whole == {"denoiser.time_embedding.up", "denoiser.time_embedding.down"}
    assert set(parallel_plan(model)) == linears - whole
    assert all(0.49 <= share <= 0.51 for n, share in split.items() if n.endswith("weight"))


def test_heads_that_do_not_divide():
    class Mesh:
        ndim = 1

        def size(self):
            return 3

    with pytest.raises(ValueError, match="num_heads is 4, which does not divide over 3 processes"):
        parallelize(LDLM(CONFIGS["ldlm"]), Mesh())
