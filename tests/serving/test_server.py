"""`dllm-kernels serve` as a process, with the real OpenAI client. benchmarks/scale_serve.py has the long form."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import openai
import pytest

from benchmarks.processes import mark, marked
from tests.cli.command import message
from tests.serving.test_replica import alone

KEY = "open sesame"

# One process has the server and its tests, in their order.
pytestmark = pytest.mark.xdist_group("server")


class Server:
    """A server of `tiny` with two replicas, and its client."""

    def __init__(self, log):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.mark, self.log = mark(), log
        options = {"port": self.port, "device": "cpu", "steps": "2,1", "batches": "1,4", "replicas": 2, "queue": 12}
        options["deadline"] = 90  # two busy cores may need more than the 30 s that a user's server gives
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "dllm_kernels", "serve", "tiny", *words]
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stderr=file, env=os.environ | {"DLLM_KERNELS_API_KEY": KEY})
        self.url = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + 120
        while "serving tiny on" not in log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def replicas(self):
        return marked("ServeReplica:dllm-kernels:Replica", self.mark)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server") / "log")
    yield found
    if found.process.poll() is None:
        found.process.terminate()
        found.process.wait(100)


def test_the_openai_client(server):
    assert [model.id for model in server.client.models.list()] == ["tiny"]
    extra = {"num_inference_steps": 1}
    found = server.client.completions.create(
        model="tiny", prompt="", max_tokens=9, n=3, seed=5, temperature=0.5, logprobs=1, extra_body=extra
    )
    for j, choice in enumerate(found.choices):
        tokens, logprobs = alone(1, 5, j, 0.5)
        assert choice.text == " ".join(map(str, tokens[:9]))
        assert choice.logprobs.token_logprobs == logprobs[:9]
    assert found.usage.completion_tokens == 27
    with pytest.raises(openai.BadRequestError, match="this server has 2, 1"):
        server.client.completions.create(model="tiny", prompt="", extra_body={"num_inference_steps": 7})
    with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
        server.client.completions.create(model="other", prompt="")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def metrics(server):
    return httpx2.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text


def many(server, count, ask):
    """What `count` threads got that ask at once."""
    found, threads = [], []
    for i in range(count):
        threads.append(threading.Thread(target=lambda i=i: found.append(ask(i))))
        threads[-1].start()
    return found, threads


def completion(server, seed):
    """The text of a seed's first sample, or the status of the failure."""
    try:
        return seed, server.client.completions.create(model="tiny", prompt="", seed=seed).choices[0].text
    except openai.APIStatusError as error:
        return seed, error.status_code


def test_more_than_the_queue_holds_is_refused_at_once_and_the_rest_answered(server):
    found, threads = many(server, 40, lambda i: completion(server, i))
    for thread in threads:
        thread.join()
    texts = [text for _, text in found if text != 429]
    assert 12 <= len(texts) < 40 and not any(isinstance(text, int) for text in texts)
    for seed, text in found:
        if text != 429:
            assert text == " ".join(map(str, alone(2, seed, 0, 0.0)[0]))
            break
    assert re.search(r'dllm_requests_total\{status="429"\} [1-9]', metrics(server))
    assert "dllm_queue_samples 0.0" in metrics(server)


def test_a_replica_killed_under_load(server):
    stop, found = time.monotonic() + 4, []

    def keep_asking(i):
        while time.monotonic() < stop:
            found.append(completion(server, i))

    _, threads = many(server, 6, keep_asking)
    time.sleep(1)
    before = server.replicas()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    texts = {seed: {text for s, text in found if s == seed and isinstance(text, str)} for seed in range(6)}
    # A row of a lost replica is made again by another, so it is the same sample.
    assert all(len(of_seed) == 1 for of_seed in texts.values())
    assert {text for _, text in found if isinstance(text, int)} <= {503, 504}
    deadline = time.monotonic() + 60
    while (now := server.replicas()) == before or len(now) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_shutdown_answers_what_was_taken(server):
    found, threads = many(server, 12, lambda i: completion(server, i))
    waiting = 0.0
    while waiting < 4:
        assert any(thread.is_alive() for thread in threads)
        waiting = float(re.search(r"^dllm_queue_samples (\S+)$", metrics(server), re.MULTILINE)[1])
    server.process.terminate()
    for thread in threads:
        thread.join()
    assert server.process.wait(100) == 0
    texts = [text for _, text in found if isinstance(text, str)]
    # A request that came after the signal is told so.
    assert len(texts) >= waiting and {text for _, text in found if isinstance(text, int)} <= {503}
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/health")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--host", "0.0.0.0"), "listening on 0.0.0.0 needs an API key in DLLM_KERNELS_API_KEY"),
        (("--steps", "ten"), "steps is 'ten'; it must be whole numbers"),
        (("--batches", "0"), "batch_size is 0"),
        (("--solver", "ddpm"), "cannot share a call"),
        (("--port", "{taken}"), "cannot listen on 127.0.0.1"),
        (("--tokenizer", "/nowhere"), "gives no tokenizer"),
        (("--device", "foo"), "unknown device 'foo'; known devices: cpu, cuda, cuda:N"),
        (("--backend", "cuda"), "attention cannot run on cpu with backend 'cuda'"),
        (("--ray", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_bad_input(options, expected, monkeypatch):
    monkeypatch.delenv("DLLM_KERNELS_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = [str(option).replace("{taken}", str(taken.getsockname()[1])) for option in options]
        said = message("serve", "tiny", "--device", "cpu", *options)
    assert expected in said
