"""Prompts and text through the batch job and the server: the samples are those of LDLMPipeline."""

import json

import pyarrow.parquet as pq
import pytest

pytest.importorskip("transformers")

from dllm_kernels.inference.load import load
from dllm_kernels.inference.pipeline import LDLMPipeline
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.serving.replica import Row, Samplers, Settings, Text
from tests.cli.command import message, read, run
from tests.evaluation.words import save_encoder, save_model

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
        folder, encoder=encoder, device="cpu", batch_size=1, context_len=62, batch_invariant=True
    )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_files_hold_the_pipelines_texts(folder, pipeline, tmp_path, scale):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    options = ("--steps", 2, "--seed", 5, "--batch", 3, "--shard", 3, "--device", "cpu", "--guidance-scale", scale)
    options += ("--prompt-len", 62)
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
    settings = Settings(str(folder), steps=(2,), batches=(1, 4), prompt_len=62, guidance=True)
    rows = [Row(2, prompt, 2.0, seed=5, sample=place) for place, prompt in enumerate(PROMPTS)]
    answers = Samplers(settings).run([*rows, Row(2, seed=5)])
    text = Text(load(settings).tokenizer)
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
    assert "its config names none" in message("generate", model, "--prompt", "w4", "--device", "cpu")
    gone = save_model(tmp_path / "gone", encoder=str(tmp_path / "nowhere"))
    for command in (("generate", "--prompt", "w4"), ("serve",)):
        said = message(command[0], gone, *command[1:], "--device", "cpu")
        assert said == f"the encoder {tmp_path / 'nowhere'} is not a folder, and not a hub id"


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_prompt_that_is_typed(folder, scale):
    options = ("--steps", 2, "--seed", 5, "--batch", 3, "--first-sample", 7, "--guidance-scale", scale, "--device", "cpu")
    found = read("generate", folder, "--prompt", PROMPTS[2], *options, "--temperature", 4)
    out = LDLMPipeline.from_pretrained(folder, device="cpu")(
        PROMPTS[2], 2, scale, num_return_sequences=3, seed=5, first_sample=7, temperature=4.0
    )
    assert (found["tokens"], found["text"], found["prompt"]) == (out.tokens.tolist(), out.texts, PROMPTS[2])
    assert len(set(out.texts)) == 3
    lines = run("generate", folder, "--prompt", PROMPTS[2], *options, "--temperature", 4).stdout.splitlines()
    assert lines == [f"sample {7 + i}: {text}" for i, text in enumerate(out.texts)]


def test_a_prompt_has_the_models_length_or_what_is_said(folder, tmp_path):
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "w4"}}\n{{"prompt": "{"w7 " * 14}"}}\n')
    options = ("--steps", 1, "--device", "cpu")
    files = ("generate", folder, "--prompts", tmp_path / "p.jsonl", "--output", tmp_path / "out", *options)
    said = message(*files)
    assert said == f"line 2 of {tmp_path / 'p.jsonl'} has 14 tokens; prompt_len allows from 1 to 13"
    assert not (tmp_path / "out").exists() and read(*files, "--prompt-len", 14)["made"] == 2
    typed = ("generate", folder, "--prompt", "w7 " * 14, *options)
    assert message(*typed) == "prompt 0 has 14 tokens; prompt_len allows from 1 to 13"
    assert read(*typed, "--prompt-len", 14)["text"]
    for command in (files, typed):
        assert message(*command, "--prompt-len", 63).startswith("prompt_len is 63, and the encoder ")


@pytest.mark.parametrize(("asked", "expected"), [((), 13), (("--prompt-len", 20), 20), (("--prompt-len", 0), 0)])
def test_the_server_takes_prompts_of_the_models_length_or_what_is_said(folder, monkeypatch, asked, expected):
    ray_serve, served = pytest.importorskip("dllm_kernels.serving.ray_serve"), []
    monkeypatch.setattr(ray_serve, "run", lambda settings, *_: served.append(settings))
    run("serve", folder, "--device", "cpu", *asked)
    (settings,) = served
    assert settings.prompt_len == expected
    limit = settings.prompt_limit()
    if expected:
        limit(["w7 " * expected])
        with pytest.raises(ValueError, match=f"prompt 0 has {expected + 1} tokens; prompt_len allows from 1 to {expected}"):
            limit(["w7 " * (expected + 1)])
    else:
        assert limit is None


def test_the_front_refuses_a_prompt_that_is_too_long(folder):
    ray_serve, testclient = pytest.importorskip("dllm_kernels.serving.ray_serve"), pytest.importorskip("starlette.testclient")
    # What Ray Serve wraps has an asynchronous constructor.
    front = ray_serve.Front.__bases__[0](Settings(str(folder), prompt_len=5), 13, None)
    client = testclient.TestClient(front.__serve_build_asgi_app__())
    for prompts, expected in (
        (["w7", "w7 w8 " * 3], "prompt 1 has 6 tokens; prompt_len allows from 1 to 5"),
        ("\ud800", "prompt 0 is not Unicode text: it holds half a surrogate pair"),
    ):
        body = json.dumps({"model": str(folder), "prompt": prompts})
        response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["param"], error["message"]) == ("prompt", expected)
