"""Options to what runs: what they name is found once, and does not fit in one sentence."""

import pytest
import torch

from dllm_kernels.inference.load import load
from dllm_kernels.inference.options import GenerationOptions, SamplerOptions
from dllm_kernels.inference.sampler import FusedSampler
from tests.cli.command import TINY
from tests.evaluation.words import words_tokenizer
from tests.models import randomized


def test_a_tokenizer_lies_beside_the_weights_or_is_named(tmp_path):
    pytest.importorskip("transformers")
    randomized(TINY).save_pretrained(tmp_path / "model")
    assert load(SamplerOptions(str(tmp_path / "model"), device="cpu")).tokenizer is None
    words_tokenizer().save_pretrained(tmp_path / "model")
    for options in (SamplerOptions(str(tmp_path / "model")), SamplerOptions("tiny", tokenizer=str(tmp_path / "model"))):
        found = load(options, elsewhere=True)
        assert found.tokenizer.text([7]) == "w7" and found.tokens_only is None


def test_threads_are_set_where_it_runs_on_a_cpu_and_nowhere_else():
    before = torch.get_num_threads()
    try:
        load(SamplerOptions("tiny", device="cpu", threads=before + 1), elsewhere=True)
        load(SamplerOptions("tiny", device="cuda", threads=before + 1), elsewhere=True)
        assert torch.get_num_threads() == before
        load(SamplerOptions("tiny", device="cpu", threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seq_len": 7, "solver": "ddpm", "eta": 0.5}, None),
        ({"seq_len": 65}, "seq_len is 65; this model has 64 latents"),
        ({"eta": 0.5}, "solver 'ddim' adds no noise"),
        ({"solver": "ddpm", "eta": 2.5}, "it must lie between 0 and 2"),
        ({"solver": "euler"}, "unknown solver 'euler'"),
        ({"grid": "1,0"}, "the grid has 2 times; 4 steps need 5"),
        ({"dtype": "int4"}, "dtype is 'int4'; it must be one of bf16, bfloat16, fp16"),
    ],
)
def test_what_is_checked_is_what_a_sampler_refuses(change, expected):
    options = GenerationOptions("tiny", device="cpu", **change)

    def check():
        return load(options).check_sampler(4, 2)

    def build():
        return FusedSampler(load(options).source, 4, 2, device="cpu", **options.sampler_arguments()).seq_len

    if expected is None:
        assert check() == build() == 7
        return
    for refuses in (check, build):
        with pytest.raises(ValueError, match=expected):
            refuses()


def test_a_workers_card_is_taken_by_its_name():
    assert load(SamplerOptions("tiny", device="cuda:7", backend="cuda"), elsewhere=True).device == torch.device("cuda")
    with pytest.raises(ValueError, match="unknown device 'cuda:x'"):
        load(SamplerOptions("tiny", device="cuda:x"), elsewhere=True)
