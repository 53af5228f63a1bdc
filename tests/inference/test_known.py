"""What packing would leave out is refused by name, and what only wraps a model is taken off."""

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from dllm_kernels.inference import known
from dllm_kernels.model.layers import MLP
from dllm_kernels.model.ldlm import Statistics
from dllm_kernels.ops.attention.op import attention
from tests.models import randomized
from tests.training.parts import refusal

CONFIG = LDLMConfig.preset("tiny", seq_len=5, vocab_size=101)
MERGE = "; packing reads weights alone and would leave that out: merge it into them first"


def tokens(model):
    return FusedSampler(model, 1, device="cpu", dtype=torch.float32)(seed=3).tokens


@pytest.fixture
def model():
    return randomized(CONFIG)


def subclass(base, **methods):
    """A subclass of an existing module's class, put in its place."""
    return type("Mine", (base,), methods)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * x


def inject(model, target):
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=[target], init_lora_weights=False), model)


def become(module, kind):
    module.__class__ = kind


CHANGES = {
    "lm_head is a peft.tuners.lora.layer.Linear and not a torch.nn.modules.linear.Linear": lambda m: inject(m, "lm_head"),
    "denoiser.time_embedding.up is a peft.tuners.lora.layer.Linear and not a": lambda m: inject(m, "time_embedding.up"),
    "denoiser.blocks.1.mlp.down is a tests.inference.test_known.Doubled and not a": lambda m: become(
        m.denoiser.blocks[1].mlp.down, Doubled
    ),
    "token_decoder.layers.0.mlp is a tests.inference.test_known.Mine and not a dllm_kernels.model.layers.MLP": lambda m: become(
        m.token_decoder.layers[0].mlp, subclass(MLP)
    ),
    "token_decoder is a torch.nn.modules.container.Sequential and not a": lambda m: setattr(
        m, "token_decoder", nn.Sequential(m.token_decoder)
    ),
    "statistics has a restore_latents of its own": lambda m: setattr(m.statistics, "restore_latents", lambda z: z),
    "lm_head has a forward of its own": lambda m: setattr(m.lm_head, "forward", lambda x: x),
    "latent_decoder.project_out has a call_impl of its own": lambda m: setattr(
        m.latent_decoder.project_out, "_call_impl", lambda x: x
    ),
    "lm_head has a forward hook": lambda m: m.lm_head.register_forward_hook(lambda *_: None),
    "the model has a forward hook": lambda m: m.register_forward_hook(lambda *_: None),
    "denoiser.blocks.0 has a forward pre-hook": lambda m: m.denoiser.blocks[0].register_forward_pre_hook(
        lambda *_: None, with_kwargs=True
    ),
    "lm_head is a torch.nn.utils.parametrize.ParametrizedLinear and not a": lambda m: parametrize.register_parametrization(
        m.lm_head, "weight", Doubling()
    ),
    "latent_decoder is a torch.nn.utils.parametrize.ParametrizedPerceiver": lambda m: parametrize.register_parametrization(
        m.latent_decoder, "latents", Doubling()
    ),
    "denoiser.blocks.0.mlp.up has a forward pre-hook": lambda m: nn.utils.weight_norm(m.denoiser.blocks[0].mlp.up),
    "denoiser.blocks.0.mlp.down has a forward pre-hook": lambda m: nn.utils.spectral_norm(m.denoiser.blocks[0].mlp.down),
    "the model has a decode of its own": lambda m: setattr(m, "decode", lambda z: z),
    "the model has a logits of its own": lambda m: become(m, subclass(LDLM, logits=lambda self, h: h)),
    "denoiser.blocks.2 is not in its config": lambda m: m.denoiser.blocks.append(m.denoiser.blocks[0]),
    "denoiser.extra is not in its config": lambda m: m.denoiser.register_parameter("extra", nn.Parameter(torch.ones(1))),
    "lm_head.bias is not in the model": lambda m: setattr(m.lm_head, "bias", None),
}

MISFITS = {
    "token_decoder.norm.eps is 1e-06 and its config says 1e-05: packing computes with the latter": lambda m: setattr(
        m.token_decoder.norm, "eps", 1e-6
    ),
    "denoiser.blocks.0.self_attention.heads is 2 and its config says 4: packing computes with the latter": lambda m: setattr(
        m.denoiser.blocks[0].self_attention, "heads", 2
    ),
    "latent_decoder.layers.0.cross_attention.attention is a function of its own; packing knows model.layers.sdpa and "
    "ops.attention.op.attention": lambda m: setattr(m.latent_decoder.layers[0].cross_attention, "attention", lambda q, *_: q),
    "lm_head.weight has shape [7, 64] where the config asks for [101, 64]": lambda m: setattr(
        m.lm_head, "weight", nn.Parameter(torch.ones(7, 64))
    ),
    "lm_head.weight is torch.complex64; it must be dense, torch.bfloat16, torch.float16, torch.float32, torch.float64": (
        lambda m: m.lm_head.to(torch.complex64)
    ),
    "lm_head.weight is torch.float32 torch.sparse_coo; it must be dense, torch.bfloat16, torch.float16, torch.float32, "
    "torch.float64": lambda m: setattr(m.lm_head, "weight", nn.Parameter(m.lm_head.weight.detach().to_sparse())),
    "lm_head.weight is on the meta device and has no values: load the weights first": lambda m: m.lm_head.to("meta"),
}


@pytest.mark.parametrize("said", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_packing_would_leave_out_is_refused(model, said):
    if "peft" in said:
        pytest.importorskip("peft")
    CHANGES[said](model)
    found = refusal(lambda: tokens(model))
    assert found.startswith(said) and found.endswith(MERGE)


@pytest.mark.parametrize("said", MISFITS)
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_what_does_not_fit_the_config_is_refused(model, said):
    MISFITS[said](model)
    assert refusal(lambda: tokens(model)) == said


def test_a_patched_class_is_refused(model, monkeypatch):
    monkeypatch.setattr(MLP, "forward", lambda self, x: x)
    assert refusal(lambda: tokens(model)) == f"denoiser.blocks.0.mlp has a forward of its own{MERGE}"


def test_a_tensor_that_is_not_plain_is_refused(model):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model.lm_head.weight = nn.Parameter(mode.from_tensor(model.lm_head.weight.detach()))
    found = refusal(lambda: tokens(model))
    assert found == (
        "lm_head.weight is a torch._subclasses.fake_tensor.FakeTensor and not a plain tensor: "
        "gather or dequantize the weights first"
    )


def test_a_peft_model_is_refused_and_merged_adapters_are_used(model):
    peft = pytest.importorskip("peft")
    before = tokens(model)
    wrapped = peft.PeftModel(model, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    assert refusal(lambda: tokens(wrapped)).startswith("the model is a peft.peft_model.PeftModel and not an LDLM: merge its")
    with torch.no_grad():
        wrapped.base_model.model.lm_head.lora_B["default"].weight.mul_(50)
    merged = wrapped.merge_and_unload()
    expected = randomized(CONFIG)
    expected.load_state_dict(merged.state_dict())
    assert torch.equal(tokens(merged), tokens(expected)) and not torch.equal(tokens(merged), before)


def in_parallel(model):
    """The model in DistributedDataParallel, which needs a process group of one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()


WRAPPED = {
    "compile": torch.compile,
    "parallel": in_parallel,
    "average": torch.optim.swa_utils.AveragedModel,
    "twice": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_taken_off(model, name):
    expected = tokens(model)
    assert torch.equal(tokens(WRAPPED[name](model)), expected)


def test_compiled_parts_are_taken_as_they_are(model):
    expected = tokens(model)
    model.denoiser.blocks[1], model.token_decoder = torch.compile(model.denoiser.blocks[1]), torch.compile(model.token_decoder)
    model.lm_head.compile()
    assert torch.equal(tokens(model), expected)
    model.token_decoder.register_forward_hook(lambda *_: None)
    assert refusal(lambda: tokens(model)) == f"token_decoder has a forward hook{MERGE}"


def test_what_computes_the_same_is_taken(model):
    """A subclass without a computation of its own, our attention, hooks of a backward pass, and a changed latent encoder."""
    expected = tokens(model)
    model.__class__ = subclass(LDLM, forward=lambda self, batch: None, training_step=lambda self, batch: None)
    model.denoiser.blocks[0].self_attention.attention = attention
    model.denoiser.blocks[1].self_attention.attention = functools.partial(attention, backend="torch")
    model.lm_head.register_full_backward_hook(lambda *_: None)
    model.latent_encoder.layers[0].register_forward_hook(lambda *_: None)
    assert torch.equal(tokens(model), expected)


def test_a_hook_on_all_modules_of_the_process_changes_nothing(model):
    expected, seen = tokens(model), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, out: seen.append(module) or out * 2)
    try:
        assert torch.equal(tokens(model), expected) and seen == []
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.denoiser.blocks[0].mlp.register_forward_hook(lambda *_: None),
        lambda m: m.denoiser.blocks[0].mlp.register_forward_pre_hook(lambda *_: None),
        lambda m: setattr(m.denoiser.blocks[0].mlp, "forward", lambda x: x),
    ],
)
def test_what_is_added_after_packing_is_seen(model, change):
    sampler = FusedSampler(model, 1, device="cpu")
    change(model)
    with pytest.raises(RuntimeError, match=r"first: denoiser\.blocks\.0\.mlp\); call refresh"):
        sampler()
    assert refusal(sampler.refresh).startswith("denoiser.blocks.0.mlp has a forward")


def test_a_config_that_only_samples_differently_is_taken(model):
    expected = FusedSampler(model, 2, grid=("log_snr", -3.0, 1.0), device="cpu")(seed=2).latents
    model.config = dataclasses.replace(CONFIG, sampled_log_snr=(-3.0, 1.0))
    assert torch.equal(FusedSampler(model, 2, device="cpu")(seed=2).latents, expected)
    model.config = dataclasses.replace(CONFIG, denoiser_layers=1)
    assert refusal(lambda: tokens(model)).startswith("denoiser.blocks.1 is not in its config")


@pytest.mark.parametrize("what", [None, 5, LDLM, {}])
def test_what_is_no_model(what):
    said = f"the model is {type(what).__name__}; it must be an LDLM, an LDLMConfig, a name or a source"
    assert refusal(lambda: FusedSampler(what, device="cpu")) == said


def test_no_model_at_all():
    assert refusal(lambda: FusedSampler(nn.Linear(2, 3), device="cpu")) == (
        "the model is a torch.nn.modules.linear.Linear and not an LDLM: merge its adapters and gather its shards into a plain "
        "LDLM first"
    )


def test_every_module_that_a_part_is_made_of_is_known():
    kinds = {type(module) for module in randomized(CONFIG).modules()}
    assert kinds - known._FORWARD.keys() == {LDLM, Statistics, nn.ModuleList}
