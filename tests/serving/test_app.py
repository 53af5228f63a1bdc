"""The HTTP application in this process: OpenAI's bodies, limits, the bounded queue, deadlines, and no 500 for any input."""

import asyncio
import hashlib
import json
import re
import threading

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from dllm_kernels.serving.app import Desk, Lost, create_app
from dllm_kernels.serving.limits import key_digest
from dllm_kernels.serving.replica import Answer, Settings
from tests.evaluation.words import words_tokenizer

PATH = "/v1/completions"
T = 6


def answer(row):
    tokens = [100 * row.sample + i for i in range(T)]
    return Answer(tokens, [-0.5 * i for i in range(T)], 3 if row.prompt else 0, 1, 1, 0.01, 2.5, True)


async def at_once(row):
    return answer(row)


def limit(prompts, place):
    """A word is a token, of which a prompt may have 8."""
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt.split()) <= 8:
            raise ValueError(f"{place(number)} has {len(prompt.split())} tokens")


def client(generate=at_once, **changes):
    """A client of the application, which has `.desk`."""
    desk = Desk(Settings(**{"model": "tiny", "steps": (2, 4), "prompt_len": 8, "guidance": True} | changes), T, generate, limit)
    found = TestClient(create_app(desk), raise_server_exceptions=False)
    found.desk = desk
    return found


def error(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]


def metric(found, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", found.get("/metrics").text, re.MULTILINE)[1])


def test_a_completion():
    body = client().post(PATH, json={"model": "tiny", "prompt": ["ab", "c"], "n": 2, "max_tokens": 3, "logprobs": 1}).json()
    assert re.fullmatch("cmpl-[0-9a-f]{32}", body.pop("id")) and body.pop("created") > 0
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}
    assert [choice["text"] for choice in body["choices"]] == ["0 1 2", "100 101 102", "200 201 202", "300 301 302"]
    assert body["choices"][3] == {
        "index": 3,
        "text": "300 301 302",
        "finish_reason": "length",
        "logprobs": {
            "tokens": ["300", "301", "302"],
            "token_logprobs": [0, -0.5, -1.0],
            "top_logprobs": None,
            "text_offset": [0, 4, 8],
        },
    }


class TestEnd:
    """[CLS] 0 is not shown, [SEP] 1 ends a text."""

    SAMPLES = ([7, 8, 1, 9, 1, 10], [0, 9, 10, 11, 12, 1], [1, 9, 9, 9, 9, 9], [4, 5, 6, 7, 8, 9])

    @pytest.fixture(scope="class")
    def tokenizer(self, tmp_path_factory):
        pytest.importorskip("transformers")
        path = tmp_path_factory.mktemp("tokenizer")
        words_tokenizer().save_pretrained(path)
        return str(path)

    @pytest.mark.parametrize(
        ("max_tokens", "texts", "lengths", "reasons"),
        [
            (None, ("w7 w8", "w9 w10 w11 w12", "", "w4 w5 w6 w7 w8 w9"), (3, 6, 1, 6), ("stop", "stop", "stop", "length")),
            (5, ("w7 w8", "w9 w10 w11 w12", "", "w4 w5 w6 w7 w8"), (3, 5, 1, 5), ("stop", "length", "stop", "length")),
            (3, ("w7 w8", "w9 w10", "", "w4 w5 w6"), (3, 3, 1, 3), ("stop", "length", "stop", "length")),
            (2, ("w7 w8", "w9", "", "w4 w5"), (2, 2, 1, 2), ("length", "length", "stop", "length")),
        ],
    )
    def test_a_sample_stops_at_its_end_token_or_where_it_is_cut(self, tokenizer, max_tokens, texts, lengths, reasons):
        async def fixed(row):
            return Answer(self.SAMPLES[row.sample], [-0.5 * i for i in range(T)], 0, 1, 1, 0.01, None, True)

        body = {"model": "tiny", "n": 4, "logprobs": 1, "max_tokens": max_tokens}
        found = client(fixed, tokenizer=tokenizer).post(PATH, json=body).json()
        choices = found["choices"]
        assert [choice["text"] for choice in choices] == list(texts)
        assert [choice["finish_reason"] for choice in choices] == list(reasons)
        for choice, length in zip(choices, lengths, strict=True):
            assert choice["logprobs"]["token_logprobs"] == [-0.5 * i for i in range(length)]
            assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["text_offset"]) == length
        assert found["usage"] == {"prompt_tokens": 0, "completion_tokens": sum(lengths), "total_tokens": sum(lengths)}


def test_what_a_row_is_asked_for():
    rows = []

    async def kept(row):
        rows.append(row)
        return answer(row)

    found = client(kept, deadline_s=7)
    found.post(PATH, json={"model": "tiny"})
    body = {"prompt": "x", "seed": 5, "temperature": 0.5, "num_inference_steps": 4, "guidance_scale": 2.5, "n": 2}
    found.post(PATH, json={"model": "tiny"} | body)
    seen = [(r.steps, r.prompt, r.guidance_scale, r.temperature, r.seed, r.sample) for r in rows]
    assert seen == [(2, None, 1, 0, None, 0), (4, "x", 2.5, 0.5, 5, 0), (4, "x", 2.5, 0.5, 5, 1)]


@pytest.mark.parametrize(
    ("changes", "status", "expected"),
    [
        ({"model": "gpt-4"}, 404, "there is no model 'gpt-4' here"),
        ({"max_tokens": T + 1}, 400, f"max_tokens is {T + 1}; this model makes {T}"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"num_inference_steps": 3}, 400, "num_inference_steps is 3; this server has 2, 4"),
        ({"prompt": "x" * 32_769}, 400, "a prompt has 32769 characters"),
        ({"prompt": "x " * 9, "n": 3}, 400, "prompt 0 has 9 tokens"),
        ({"prompt": ["", "x", "y " * 10], "n": 2}, 400, "prompt 2 has 10 tokens"),
        ({"prompt": " "}, 400, "prompt 0 has 0 tokens"),
        ({"guidance_scale": 2}, 400, "guidance_scale needs a prompt"),
        ({"temperature": -1}, 400, "temperature: Input should be greater"),
        ({"temperature": 1e400}, 400, ""),
        ({"n": 65}, 400, "a request has at most 64 samples"),
        ({"n": 129}, 400, "n: Input should be less"),
        ({"stream": True}, 400, "stream: Input should be False"),
        ({"best_of": 2}, 400, "best_of"),
        ({"nonsense": 1}, 400, "nonsense: Extra inputs are not permitted"),
        ({"prompt": [1, 2]}, 400, "prompt"),
        ({"seed": 2**64}, 400, "seed"),
    ],
)
def test_bodies_that_do_not_fit(changes, status, expected):
    found = client()
    response = found.post(PATH, content=json.dumps({"model": "tiny"} | changes), headers={"content-type": "application/json"})
    assert expected in error(response, status)["message"]
    assert found.desk.waiting == 0 and metric(found, f'dllm_requests_total{{status="{status}"}}') == 1


@pytest.mark.parametrize("prompt", [[], [1, 2, 3], 5, ["a", 3], ["a"] * 129, [["a"]], {}])
def test_a_prompt_of_another_type_is_told_what_it_may_be(prompt):
    found = error(client().post(PATH, json={"model": "tiny", "prompt": prompt}), 400)
    assert found["param"] == "prompt" and found["message"] == "prompt: it must be a text, or a list of 1 to 128 texts"


@pytest.mark.parametrize(
    ("content", "param", "expected"),
    [
        ("not JSON", None, "the body: JSON decode error"),
        ('{"model": "tiny", ', None, "the body: JSON decode error"),
        ("[1]", None, "the body: Input should be a valid dictionary or object to extract fields from"),
        ("", None, "the body: Field required"),
        ("{}", "model", "model: Field required"),
        ('{"model": "tiny", "n": "x"}', "n", "n: Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_the_parameter_is_the_field_or_null(content, param, expected):
    found = error(client().post(PATH, content=content, headers={"content-type": "application/json"}), 400)
    assert (found["param"], found["message"]) == (param, expected)


def test_a_model_without_prompts_takes_an_empty_one():
    found = client(prompt_len=0, guidance=False)
    assert found.post(PATH, json={"model": "tiny", "prompt": ""}).status_code == 200
    assert "takes no prompt" in error(found.post(PATH, json={"model": "tiny", "prompt": "x"}), 400)["message"]


def test_the_document_names_what_the_server_has():
    fields = client().get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["model"]["enum"] == ["tiny"] and fields["num_inference_steps"]["anyOf"][0]["enum"] == [2, 4]
    assert fields["max_tokens"]["anyOf"][0]["maximum"] == T


def test_models_health_and_metrics():
    found = client()
    assert [model["id"] for model in found.get("/v1/models").json()["data"]] == ["tiny"]
    assert found.get("/health").json() == {"status": "ok"}
    found.post(PATH, json={"model": "tiny", "n": 3})
    for name, value in (
        ('dllm_requests_total{status="200"}', 1),
        ("dllm_tokens_total", 3 * T),
        ("dllm_joules_total", 7.5),
        ("dllm_batch_samples_count", 3),
        ("dllm_request_seconds_count", 1),
        ("dllm_queue_samples", 0),
    ):
        assert metric(found, name) == value, name
    found.desk.draining = True
    assert error(found.get("/health"), 503)["message"] == "the server is shutting down"
    assert found.post(PATH, json={"model": "tiny"}).status_code == 503


class TestKey:
    digest = hashlib.sha256(b"open sesame").hexdigest()

    @pytest.mark.parametrize("header", [None, "Bearer wrong", "open sesame", "Basic open sesame", "Bearer"])
    @pytest.mark.parametrize("path", [PATH, "/v1/models", "/metrics", "/openapi.json", "/nowhere"])
    def test_nothing_without_it(self, header, path):
        found = client(key_digest=self.digest)
        response = found.request("POST" if path == PATH else "GET", path, headers={"Authorization": header} if header else {})
        assert "the API key is missing or wrong" in error(response, 401)["message"]
        assert response.headers["WWW-Authenticate"] == "Bearer"

    def test_everything_with_it(self):
        found = client(key_digest=self.digest)
        found.headers["Authorization"] = "Bearer open sesame"
        assert found.post(PATH, json={"model": "tiny"}).status_code == 200
        assert TestClient(found.app).get("/health").status_code == 200

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
    def test_loopback_needs_none(self, host, monkeypatch):
        monkeypatch.delenv("DLLM_KERNELS_API_KEY", raising=False)
        assert key_digest(host) is None
        monkeypatch.setenv("DLLM_KERNELS_API_KEY", "open sesame")
        assert key_digest(host) == self.digest

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
    def test_elsewhere_a_server_does_not_listen_without_one(self, host, monkeypatch):
        monkeypatch.setenv("DLLM_KERNELS_API_KEY", "")
        with pytest.raises(ValueError, match="needs an API key in DLLM_KERNELS_API_KEY"):
            key_digest(host)


class TestLimits:
    def test_a_body_over_the_limit(self):
        found = client(most_body=300)
        assert found.post(PATH, json={"model": "tiny", "prompt": "x" * 200}).status_code == 200
        assert "at most 300 bytes" in error(found.post(PATH, json={"model": "tiny", "prompt": "x" * 300}), 413)["message"]

    def test_a_body_that_turns_out_to_be_over_it(self):
        read = []

        def endless():
            for _ in range(1000):
                read.append(1)
                yield b" " * 100

        response = client(most_body=300).post(PATH, content=endless(), headers={"content-type": "application/json"})
        assert "at most 300 bytes" in error(response, 413)["message"]

    def test_a_full_queue_says_when_to_come_back(self):
        release, started = threading.Event(), threading.Event()

        async def held(row):
            started.set()
            await asyncio.to_thread(release.wait)
            return answer(row)

        with client(held, queue=4) as found:
            first = []
            thread = threading.Thread(target=lambda: first.append(found.post(PATH, json={"model": "tiny", "n": 3})))
            thread.start()
            started.wait()
            refused = found.post(PATH, json={"model": "tiny", "n": 2})
            assert "3 samples wait, and the queue holds 4" in error(refused, 429)["message"]
            assert int(refused.headers["Retry-After"]) >= 1
            assert metric(found, "dllm_queue_samples") == 3
            release.set()
            thread.join()
            assert first[0].status_code == 200
            assert found.post(PATH, json={"model": "tiny", "n": 4}).status_code == 200

    def test_the_deadline(self):
        cancelled = []

        async def slow(row):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(row)
                raise

        found = client(slow, deadline_s=0.3)
        assert (
            "no answer within the deadline of 0.3 s" in error(found.post(PATH, json={"model": "tiny", "n": 2}), 504)["message"]
        )
        assert len(cancelled) == 2 and found.desk.waiting == 0

    def test_a_row_that_was_dropped_is_a_deadline_too(self):
        async def dropped(row):
            return None

        assert client(dropped).post(PATH, json={"model": "tiny"}).status_code == 504

    def test_a_lost_replica(self):
        async def lost(row):
            if row.sample:
                raise Lost
            await asyncio.sleep(60)

        found = client(lost)
        response = found.post(PATH, json={"model": "tiny", "n": 2})
        assert "was lost" in error(response, 503)["message"] and response.headers["Retry-After"] == "1"
        assert found.desk.waiting == 0

    def test_draining_waits_for_what_was_taken(self):
        async def everything():
            release = asyncio.Event()

            async def held(row):
                await release.wait()
                return answer(row)

            desk = Desk(Settings("tiny"), T, held)
            from dllm_kernels.serving.protocol import CompletionRequest

            taken = asyncio.create_task(desk.complete(CompletionRequest(model="tiny")))
            await asyncio.sleep(0.01)
            drained = asyncio.create_task(desk.drained())
            await asyncio.sleep(0.01)
            assert not drained.done()
            release.set()
            await drained
            return await taken

        assert len(asyncio.run(everything()).choices) == 1


fuzzed = client()
schema = schemathesis.openapi.from_asgi("/openapi.json", fuzzed.app)


@schema.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_input_is_a_500_and_every_answer_is_as_documented(case):
    response = case.call()
    assert response.status_code < 500
    case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])


@given(
    content=st.binary(max_size=200) | st.text().map(str.encode), kind=st.sampled_from(["application/json", "text/plain", "x"])
)
@settings(max_examples=100, deadline=None)
def test_no_bytes_are_a_500(content, kind):
    response = fuzzed.post(PATH, content=content, headers={"content-type": kind})
    assert response.status_code in (400, 404, 413) and "message" in response.json()["error"]
