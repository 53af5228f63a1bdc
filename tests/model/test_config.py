"""Presets and the sentences of bad configs and bad sampler arguments."""

import json

import pytest
import torch

from dllm_kernels import FusedSampler, LDLMConfig
from dllm_kernels.model.config import PRESETS, open_dllm_config
from tests.models import randomized

TINY = LDLMConfig.preset("tiny", seq_len=5, vocab_size=31)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    assert LDLMConfig.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def test_presets_hold_the_published_shapes():
    published = {name: (c.dim, c.num_heads, c.token_decoder_heads, c.vocab_size) for name, c in PRESETS.items()}
    assert published == {
        "open-dllm-35b-a3b": (2048, 8, 16, 248_320),
        "open-dllm-27b": (5120, 8, 16, 248_320),
        "ldlm-gpt2": (768, 12, 12, 50_257),
        "ldlm-35b-a3b": (2048, 16, 16, 248_320),
        "ldlm-27b": (5120, 40, 40, 248_320),
        "tiny": (64, 4, 4, 512),
    }
    assert [PRESETS[f"open-dllm-{n}"].head_dim for n in ("35b-a3b", "27b")] == [256, 640]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LDLMConfig.preset("big"), "unknown preset 'big'; known presets: open-dllm-35b-a3b, open-dllm-27b, ldlm-gpt2"),
        (lambda: LDLMConfig.preset("tiny", dim=0), "dim is 0; it must be a whole number of at least 1"),
        (lambda: LDLMConfig.preset("tiny", seq_len=2.5), "seq_len is 2.5"),
        (lambda: LDLMConfig.preset("tiny", latent_dim=-1), "latent_dim is -1"),
        (lambda: LDLMConfig.preset("tiny", num_heads=7), "dim 64 does not divide into 7 heads"),
        (lambda: LDLMConfig.preset("tiny", token_decoder_heads=7), "hidden_dim 64 does not divide into 7 token decoder heads"),
        (lambda: LDLMConfig.preset("tiny", noise_schedule="sine"), "noise_schedule is 'sine'"),
        (lambda: LDLMConfig.preset("tiny", schedule_parameter=0), "schedule_parameter is 0"),
        (lambda: LDLMConfig.preset("tiny", sampled_log_snr=(2.0, -1.0)), r"sampled_log_snr is \(2.0, -1.0\); it must be two"),
        (lambda: LDLMConfig.preset("tiny", sampled_log_snr="-4"), "sampled_log_snr is '-4'; it must be two finite numbers"),
        (lambda: LDLMConfig.preset("tiny", sampled_log_snr=[-4, float("nan")]), "sampled_log_snr is"),
        (
            lambda: LDLMConfig.preset("tiny", guidance_range=(0, 2)),
            r"guidance_range is \(0.0, 2.0\); it must be above 0 and hold 1",
        ),
        (lambda: LDLMConfig.preset("tiny", guidance_range=(2, 5)), r"guidance_range is \(2.0, 5.0\); it must be above 0"),
        (lambda: LDLMConfig.preset("tiny", guidance_range=2.0), "guidance_range is 2.0; it must be two finite numbers"),
        (lambda: LDLMConfig.preset("tiny", sampled_guidance=2.0), "a denoiser without guidance_range has 1"),
        (
            lambda: LDLMConfig.preset("tiny", guidance_range=(0.5, 2.0), sampled_guidance=3.0),
            "sampled_guidance is 3.0; the denoiser was trained with scales from 0.5 to 2.0",
        ),
        (lambda: LDLMConfig.preset("open-dllm-27b", guidance_range=(0.5, 2.0)), "guidance_range needs a denoiser with ada_ln"),
        (lambda: LDLMConfig.preset("tiny", ada_ln=False), "without ada_ln"),
        (lambda: LDLMConfig.preset(["tiny"]), r"unknown preset \['tiny'\]"),
        (lambda: LDLMConfig.preset("tiny", causal="yes"), "causal is 'yes'; it must be true or false"),
        (lambda: LDLMConfig.preset("tiny", encoder=5), "encoder is 5; it must be a path, a hub id or None"),
        (lambda: LDLMConfig.preset("tiny", encoder_layer="a"), "encoder_layer is 'a'; it must be a whole number"),
        (
            lambda: LDLMConfig.preset("tiny", schedule_parameter="3e0"),
            "schedule_parameter is '3e0'; it must be a finite",
        ),
        (lambda: LDLMConfig.preset("tiny", schedule_parameter=float("inf")), "schedule_parameter is inf"),
        (lambda: LDLMConfig.preset("tiny", decoder_noise=-1), "decoder_noise is -1; it must be a finite number of at least 0"),
        (lambda: open_dllm_config("64", 31), "dim is '64'; it must be a whole number of at least 1"),
        (lambda: LDLMConfig.preset("tiny", self_conditioning=False), "self_conditioning must be true"),
        (lambda: LDLMConfig.preset("tiny", first_prediction="skip"), "first_prediction must be 'zeros'"),
        (lambda: LDLMConfig.preset("tiny", first_prediction="no"), "first_prediction is 'no'"),
    ],
)
def test_bad_configs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 0}, "num_steps is 0; it must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"seq_len": 6}, "seq_len is 6; this model has 5 latents"),
        ({"seq_len": 0}, "seq_len is 0"),
        ({"context_len": -1}, "context_len is -1"),
        ({"guidance": True}, "guidance needs context_len"),
        ({"solver": "euler"}, "unknown solver 'euler'; known solvers: ddim, ddpm, dpmpp_2m"),
        ({"eta": 0.5}, "eta is 0.5"),
        ({"grid": "u"}, "unknown grid 'u'"),
        ({"backend": "metal"}, "unknown backend 'metal'; known backends: auto, cuda, triton, torch"),
        ({"dtype": torch.int8}, "dtype is torch.int8; on cpu it must be one of"),
        ({"device": "cuda:99"}, "cuda"),
        ({"device": "gpu"}, "unknown device 'gpu'; known devices: cpu, cuda, cuda:N"),
        ({"device": "meta"}, "device is meta; it must be cpu, cuda or cuda:N"),
        ({"backend": "cuda"}, "attention cannot run on cpu with backend 'cuda'"),
        ({"grid": [1, None, 0]}, "times are"),
    ],
)
def test_bad_sampler_options(options, message):
    with pytest.raises(ValueError, match=message):
        FusedSampler(randomized(TINY), **({"device": "cpu"} | options))


def test_context_needs_a_model_with_one():
    with pytest.raises(ValueError, match="context_len needs a model with context=True"):
        FusedSampler(
            randomized(LDLMConfig.preset("tiny", seq_len=5, vocab_size=31, context=False)), context_len=3, device="cpu"
        )


@pytest.mark.parametrize(
    "call, message",
    [
        ({"noise": torch.zeros(1, 5, 63)}, r"noise has shape \[1, 5, 63\]; it must be \[2, 5, 64\]"),
        ({"noise": torch.zeros(2, 5, 64, dtype=torch.int64)}, r"noise is torch.int64; it must be a floating-point dtype"),
        ({"noise": torch.zeros(2, 5, 64, device="meta")}, "noise is on meta; this sampler runs on cpu"),
        ({"context": torch.zeros(2, 4, 64)}, r"context has shape \[2, 4, 64\]; it must be \[2, 1 to 3, 64\]"),
        ({"context": torch.zeros(1, 3, 64)}, r"context has shape \[1, 3, 64\]; it must be \[2, 3, 64\]"),
        ({"context_mask": torch.ones(2, 3, dtype=torch.bool)}, "a context_mask needs a context"),
        (
            {"context": torch.zeros(2, 3, 64), "context_mask": torch.ones(2, 3)},
            r"context_mask is torch.float32; it must be torch.bool",
        ),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"guidance_scale": 2.0}, "guidance_scale needs a sampler made with guidance=True"),
        ({"first_sample": -1}, "first_sample is -1"),
        ({"first_sample": 1.5}, "first_sample is 1.5; it must be a whole number from 0 to 72057594037927934"),
        ({"first_sample": 2**56 - 1}, "first_sample is 72057594037927935; it must be a whole number from 0"),
        ({"seed": 7.0}, "seed is 7.0; it must be a whole number from -9223372036854775808 to 18446744073709551615"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": None}, "seed is None"),
        ({"temperature": float("inf")}, "temperature is inf; it must be a finite number of at least 0"),
        ({"temperature": 1e39}, r"temperature is 1e\+39"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; it must be a finite number"),
    ],
)
def test_bad_calls(call, message):
    sampler = FusedSampler(randomized(TINY), batch_size=2, context_len=3, num_steps=1, device="cpu")
    with pytest.raises(ValueError, match=message):
        sampler(**call)


def test_a_context_needs_a_sampler_with_one():
    with pytest.raises(ValueError, match="context_len of at least the prompt's length"):
        FusedSampler(randomized(TINY), num_steps=1, device="cpu")(context=torch.zeros(1, 3, 64))
