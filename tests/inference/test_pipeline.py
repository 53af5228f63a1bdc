"""LDLMPipeline: text in, text out, held to the samplers and to the model itself."""

from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("transformers")

from dllm_kernels import LDLM, FusedSampler
from dllm_kernels.inference import pipeline
from dllm_kernels.inference.pipeline import LDLMPipeline
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.tokenizer import TextTokenizer
from tests.evaluation.words import save_encoder, save_model
from tests.inference.reference_sampler import reference_sample
from tests.threads import together

PROMPTS = ["w7 w8 w9", "w50"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder(save_encoder(tmp_path_factory.mktemp("encoder")), device="cpu")


@pytest.fixture(scope="module")
def pipe(folder, encoder):
    """The pipeline that the tests share, in float64."""
    return LDLMPipeline.from_pretrained(folder, encoder=encoder, dtype=torch.float64, device="cpu", context_len=5)


@pytest.fixture
def model(folder):
    return LDLM.from_pretrained(folder).double()


def tokens_of(model, encoder, prompts, copies=1, **options):
    """Tokens by the model and the formula of guidance, without a plan."""
    hidden, mask = encoder.encode(prompts)
    rows = torch.arange(len(prompts)).repeat_interleave(copies)
    context = {"context": hidden.double()[rows], "context_mask": mask[rows]}
    return reference_sample(model, batch_size=len(rows), **context, **options)[1].argmax(-1)


class TestPrompts:
    @pytest.mark.parametrize("scale", [1.0, 3.0])
    def test_tokens_are_those_of_the_guidance_formula(self, pipe, model, encoder, scale):
        out = pipe(PROMPTS, 3, guidance_scale=scale, num_return_sequences=2, seed=4, first_sample=6)
        guidance = {} if scale == 1 else {"guidance_scale": scale}
        expected = tokens_of(model, encoder, PROMPTS, 2, num_steps=3, seed=4, first_sample=6, **guidance)
        assert torch.equal(out.tokens, expected) and out.seed == 4

    def test_guidance_of_one_in_the_guided_loop_is_no_guidance(self, folder, encoder):
        hidden, mask = encoder.encode(PROMPTS)
        options = {"num_steps": 3, "batch_size": 2, "context_len": 5, "dtype": torch.float64, "device": "cpu"}
        guided = FusedSampler.from_pretrained(folder, guidance=True, **options)
        plain = FusedSampler.from_pretrained(folder, **options)(context=hidden, context_mask=mask)
        one = guided(context=hidden, context_mask=mask, guidance_scale=1.0)
        two = guided(context=hidden, context_mask=mask, guidance_scale=2.0)
        assert torch.allclose(one.latents, plain.latents, rtol=0, atol=1e-6) and torch.equal(one.tokens, plain.tokens)
        assert not torch.allclose(two.latents, plain.latents, rtol=0, atol=1e-2)

    def test_every_prompt_has_its_own_context(self, pipe):
        both, swapped = pipe(PROMPTS, 3, seed=1), pipe(PROMPTS[::-1], 3, seed=1)
        # The noise belongs to the place and the context to the prompt, so only both together give the same text.
        alone = [pipe(prompt, 3, seed=1, first_sample=place).texts[0] for place, prompt in enumerate(PROMPTS)]
        assert both.texts == alone
        assert both.texts != swapped.texts and pipe(None, 3, seed=1).texts[0] != both.texts[0]

    def test_a_batch_larger_than_one_sampler_is_cut_and_its_tail_filled(self, folder, encoder, pipe):
        small = LDLMPipeline.from_pretrained(
            folder, encoder=encoder, dtype=torch.float64, device="cpu", context_len=5, batch_size=2
        )
        call = {"num_inference_steps": 2, "guidance_scale": 2.0, "seed": 3}
        a, b = (p([*PROMPTS, "w9"], num_return_sequences=1, **call) for p in (small, pipe))
        assert a.tokens.shape == (3, 13) and torch.equal(a.tokens, b.tokens) and a.texts == b.texts

    def test_the_encoder_that_the_config_names_is_loaded_at_the_first_prompt(self, tmp_path, encoder, pipe):
        folder = save_model(tmp_path / "model", encoder=encoder.path)
        named = LDLMPipeline.from_pretrained(folder, dtype=torch.float64, device="cpu", context_len=5)
        assert named(PROMPTS, 3, seed=1).texts == pipe(PROMPTS, 3, seed=1).texts


class TestSamples:
    def test_without_a_prompt(self, pipe, model):
        out = pipe(num_inference_steps=2, num_return_sequences=3, seed=8)
        assert torch.equal(out.tokens, reference_sample(model, 2, 3, seed=8)[1].argmax(-1))
        assert out.texts == [pipe.tokenizer.text(row) for row in out.tokens.tolist()]
        warm = pipe(num_inference_steps=2, num_return_sequences=3, seed=8, temperature=9.0)
        assert not torch.equal(warm.tokens, out.tokens)

    def test_a_text_ends_at_its_end_token(self, tmp_path):
        folder = save_model(tmp_path)
        model = LDLM.from_pretrained(folder)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.zero_()[1] = 9
        assert LDLMPipeline(model, TextTokenizer(folder), device="cpu")(num_inference_steps=1).texts == [""]

    def test_seeds(self, pipe):
        a, b = (pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert a.seed == b.seed and torch.equal(a.tokens, b.tokens)
        generator = torch.Generator().manual_seed(5)
        assert pipe(num_inference_steps=2, generator=generator).seed == a.seed
        assert pipe(num_inference_steps=2, generator=generator).seed != a.seed
        torch.manual_seed(3)
        first = pipe(num_inference_steps=2)
        assert torch.equal(pipe(num_inference_steps=2, seed=first.seed).tokens, first.tokens)
        torch.manual_seed(3)
        assert pipe(num_inference_steps=2).seed == first.seed


class TestSamplers:
    @pytest.fixture
    def packed(self, monkeypatch):
        """A count of the samplers that are packed."""
        made = []

        class Counted(FusedSampler):
            def refresh(self):
                made.append((self.num_steps, self.batch_size, self.context_len, self.guidance))
                super().refresh()

        monkeypatch.setattr(pipeline, "FusedSampler", Counted)
        return made

    def test_a_second_call_packs_nothing(self, folder, encoder, packed):
        pipe = LDLMPipeline.from_pretrained(folder, encoder=encoder, device="cpu", context_len=5)
        for scale in (1.0, 2.0, 3.5, 1.0):
            for seed in (0, 1):
                pipe(PROMPTS, 2, guidance_scale=scale, seed=seed)
        assert packed == [(2, 2, 5, False), (2, 2, 5, True)]

    def test_the_sampler_used_longest_ago_goes_first(self, folder, packed):
        pipe = LDLMPipeline.from_pretrained(folder, device="cpu")
        for steps in (1, 2, 3, 4, 1, 5, 1, 2):
            pipe(num_inference_steps=steps)
        assert [made[0] for made in packed] == [1, 2, 3, 4, 5, 2]

    def test_threads_that_share_a_pipeline(self, folder, encoder, packed):
        """Eight threads with prompts, seeds and steps of their own: tokens are those of one thread, and four samplers stay."""
        pipe = LDLMPipeline.from_pretrained(folder, encoder=encoder.path, device="cpu", context_len=5)
        calls = [{"prompt": f"w{4 + i} w{30 + i}", "num_inference_steps": 1 + i % 6, "seed": i} for i in range(8)]
        found = together(8, lambda i: [pipe(**calls[i]).tokens.tolist() for _ in range(2)])
        assert len(pipe._samplers) == pipeline.KEPT_SAMPLERS
        packed.clear()
        assert all(tokens == pipe(**calls[i]).tokens.tolist() for i in range(8) for tokens in found[i])
        assert len({str(tokens[0]) for tokens in found}) > 4

    def test_threads_that_ask_for_the_same_sampler_pack_it_once(self, folder, packed):
        pipe = LDLMPipeline.from_pretrained(folder, device="cpu")
        expected = [LDLMPipeline.from_pretrained(folder, device="cpu")(num_inference_steps=2, seed=i).texts for i in range(8)]
        packed.clear()
        assert together(8, lambda i: pipe(num_inference_steps=2, seed=i).texts) == expected and len(packed) == 1

    def test_changed_weights(self, folder):
        model = LDLM.from_pretrained(folder)
        pipe = LDLMPipeline(model, TextTokenizer(folder), device="cpu", dtype=torch.float32)
        before = pipe(num_inference_steps=1, seed=0).tokens
        with torch.no_grad():
            model.lm_head.bias[7] = 1e6
        for steps in (1, 2, 1):
            # A sampler that is packed meanwhile, of other steps, has the weights of now.
            with nullcontext() if steps == 2 else pytest.raises(RuntimeError, match=r"call refresh\(\)"):
                assert (pipe(num_inference_steps=steps, seed=0).tokens == 7).all()
        pipe.refresh()
        assert not torch.equal(pipe(num_inference_steps=1, seed=0).tokens, before)
        assert (pipe(num_inference_steps=1, seed=0).tokens == 7).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_on_a_card_the_captured_loop_follows_the_guidance_formula(folder, encoder, model, scale, monkeypatch):
    captures = []
    capture = FusedSampler._warmed_up_graph
    monkeypatch.setattr(FusedSampler, "_warmed_up_graph", lambda sampler: (captures.append(sampler), capture(sampler))[1])
    pipe = LDLMPipeline.from_pretrained(folder, encoder=encoder.path, dtype=torch.float32, device="cuda", context_len=5)
    call = {"num_inference_steps": 3, "guidance_scale": scale, "num_return_sequences": 4}
    pipe(PROMPTS[::-1], seed=3, **call)
    out = pipe(PROMPTS, seed=4, **call)
    guidance = {} if scale == 1 else {"guidance_scale": scale}
    expected = tokens_of(model, encoder, PROMPTS, 4, num_steps=3, seed=4, **guidance)
    assert (out.tokens.cpu() == expected).double().mean() > 0.95 and len(captures) == 1


def test_what_a_pipeline_shows_and_saves(folder, tmp_path):
    pipe = LDLMPipeline.from_pretrained(folder, dtype="fp32", device="cpu")
    assert repr(pipe) == "LDLMPipeline(dim=64, seq_len=13, vocab_size=101, context=True, dtype=torch.float32, device='cpu')"
    assert pipe.device == torch.device("cpu")
    live = LDLMPipeline(LDLM.from_pretrained(folder), TextTokenizer(folder), dtype="fp32", device="cpu")
    for number, saved in enumerate((pipe, live)):
        saved.save_pretrained(tmp_path / str(number))
        again = LDLMPipeline.from_pretrained(tmp_path / str(number), dtype="fp32", device="cpu")
        assert again(num_inference_steps=1, seed=3).texts == pipe(num_inference_steps=1, seed=3).texts


class TestBadInput:
    def test_an_option_that_no_sampler_has(self, folder):
        with pytest.raises(
            TypeError, match=r"LDLMPipeline\.from_pretrained has no argument 'guidance'; its arguments: solver, eta"
        ):
            LDLMPipeline.from_pretrained(folder, guidance=True)

    @pytest.mark.parametrize(
        "call, said",
        [
            ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be a whole number of at least 1"),
            ({"num_return_sequences": 1.5}, "num_return_sequences is 1.5; it must be a whole number of at least 1"),
            ({"prompt": ""}, "prompt 0 is empty; None generates without a prompt"),
            ({"prompt": ["w7", " \n"]}, "prompt 1 is empty; None generates without a prompt"),
            ({"prompt": []}, "prompt must be a text, a list of at least one text, or None"),
            ({"prompt": ["w7", None]}, "prompt must be a text, a list of at least one text, or None"),
            ({"prompt": 7}, "prompt must be a text, a list of at least one text, or None"),
            ({"prompt": ["w7", "w8 " * 6]}, "prompt 1 has 6 tokens and this pipeline reads at most 5: make it with a larger"),
            ({"guidance_scale": 2.0}, "guidance_scale needs a prompt: it compares with and without one"),
            ({"prompt": "w7", "guidance_scale": float("nan")}, "guidance_scale is nan; it must be a finite number"),
            ({"generator": torch.Generator(), "seed": 1}, "generator and seed both fix the samples; give one of them"),
            ({"temperature": -1.0}, "temperature is -1.0; it must be a finite number of at least 0"),
            ({"first_sample": -1}, "first_sample is -1; it must be a whole number of at least 0"),
            ({"temperature": float("inf")}, "temperature is inf; it must be a finite number of at least 0"),
            ({"prompt": "w7", "guidance_scale": 1e39}, "guidance_scale is 1e+39; it must be a finite number"),
            ({"seed": 1.5}, "seed is 1.5; it must be a whole number from -9223372036854775808 to 18446744073709551615"),
            ({"prompt": ["w7", "\ud800"]}, "text 1 is not Unicode text: it holds half a surrogate pair"),
        ],
    )
    def test_calls(self, pipe, call, said):
        with pytest.raises(ValueError) as caught:
            pipe(**{"num_inference_steps": 2} | call)
        assert str(caught.value).startswith(said)

    def test_what_cannot_be_made(self, folder, tmp_path):
        with pytest.raises(ValueError, match="batch_size is 0; it must be a whole number of at least 1"):
            LDLMPipeline.from_pretrained(folder, batch_size=0)
        with pytest.raises(ValueError, match="context_len is True; it must be"):
            LDLMPipeline.from_pretrained(folder, context_len=True)
        LDLM.from_pretrained(folder).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has no tokenizer beside its weights and names no encoder: pass tokenizer="):
            LDLMPipeline.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="names no encoder"):
            LDLMPipeline.from_pretrained(folder, device="cpu")("w7")

    def test_a_model_without_prompts(self, tmp_path):
        folder = save_model(tmp_path, context=False)
        with pytest.raises(ValueError, match="this model takes no prompt: its config has context=False"):
            LDLMPipeline.from_pretrained(folder, device="cpu")("w7")

    def test_no_hub_is_asked(self, folder, monkeypatch):
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was made"))
        LDLMPipeline.from_pretrained(folder, device="cpu")(num_inference_steps=1)
