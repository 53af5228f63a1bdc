"""Prompts and text through the batch job and the server: the samples are those of LDLMPipeline."""

import json

import pyarrow.parquet as pq
import pytest

pytest.importorskip("transformers")

from dllm_kernels.encoder import Encoder
from dllm_kernels.pipeline import LDLMPipeline
from dllm_kernels.scale.serving import Row, Samplers, Settings, Text
from tests.command import message, read
from tests.words import save_encoder, save_model

PROMPTS = ["w7 w8 w9", "w50", "w9 w10 w11 w12 w13 w14 w15", "w4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    encoder = save_encoder(tmp_path_factory.mktemp("encoder"))
    # Of these weights the prompts' texts are four; of others one token often wins everywhere.
    return save_model(tmp_path_factory.mktemp("model"), seed=7, encoder=str(encoder))


@pytest.fixture(scope="module")
def pipeline(folder):
    encoder = Encoder(LDLMPipeline.from_pretrained(folder).config.encoder, device="cpu")
    return LDLMPipeline.from_pretrained(
        folder, encoder=encoder, device="cpu", batch_size=1, context_len=64, batch_invariant=True
    )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_files_hold_the_pipelines_texts(folder, pipeline, tmp_path, scale):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    options = ("--steps", 2, "--seed", 5, "--batch", 3, "--shard", 3, "--device", "cpu", "--guidance-scale", scale)
    assert read("generate", folder, "--prompts", path, "--output", tmp_path / "out", *options)["made"] == 4
    rows = [row for name in sorted((tmp_path / "out").glob("*.parquet")) for row in pq.read_table(name).to_pylist()]
    assert [row["prompt"] for row in rows] == PROMPTS
    for place, row in enumerate(rows):
        out = pipeline(PROMPTS[place], 2, seed=5, first_sample=place, guidance_scale=scale)
        assert row["tokens"] == out.tokens[0].tolist() and row["text"] == out.texts[0]
    assert len({row["text"] for row in rows}) == 4


def test_files_without_prompts_have_text_too(folder, tmp_path):
    read("generate", folder, "--count", 3, "--output", tmp_path, "--steps", 1, "--device", "cpu")
    (row, *_) = pq.read_table(next(tmp_path.glob("*.parquet"))).to_pylist()
    assert set(row) == {"sample", "tokens", "text"} and row["text"].startswith("w")


def test_served_rows_are_the_pipelines(folder, pipeline):
    settings = Settings(str(folder), steps=(2,), batches=(1, 4), prompt_len=64, guidance=True)
    rows = [Row(2, prompt, 2.0, seed=5, sample=place) for place, prompt in enumerate(PROMPTS)]
    answers = Samplers(settings).run([*rows, Row(2, seed=5)])
    text = Text(settings.model, settings.tokenizer)
    for place, answer in enumerate(answers[:4]):
        out = pipeline(PROMPTS[place], 2, seed=5, first_sample=place, guidance_scale=2.0)
        assert answer.tokens == out.tokens[0].tolist() and text(answer.tokens) == out.texts[0]
        assert answer.prompt_tokens == len(PROMPTS[place].split()) and answer.rows == 4
    assert answers[4].tokens == pipeline(None, 2, seed=5).tokens[0].tolist() and answers[4].prompt_tokens == 0


def test_an_encoder_that_is_not_there(tmp_path):
    model = save_model(tmp_path / "model")
    (tmp_path / "p.jsonl").write_text('{"prompt": "w4"}\n')
    said = message("generate", model, "--prompts", tmp_path / "p.jsonl", "--output", tmp_path / "out", "--device", "cpu")
    assert "its config names none" in said
