"""Batch generation on one machine: a sample depends on the job and its number, and a run goes on where it was killed."""

import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dllm_kernels import FusedSampler
from dllm_kernels.batch import Job, ParquetFolder, Prompts, generate
from dllm_kernels.batch import job as job_module
from dllm_kernels.batch import run as batch
from dllm_kernels.batch.shards import Shards
from dllm_kernels.cli import generate_files as command_module
from dllm_kernels.inference.encode import encode
from dllm_kernels.inference.weights import RandomModel
from dllm_kernels.model import encoder as encoder_module
from dllm_kernels.model.config import LDLMConfig
from tests.batch.test_prompts import StandInEncoder, jsonl
from tests.cli.command import message, read, run, save_ours
from tests.models import randomized

JOB = Job("tiny", steps=2, batch=4, seq_len=16, temperature=1.0, seed=3)


def rows(folder):
    """Every row, in the order of the files' names."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    generate(22, folder, JOB, shard_size=9)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_samples_are_those_of_the_sampler(whole):
    sampler = FusedSampler(
        RandomModel(LDLMConfig.preset("tiny")), 2, 1, 16, dtype=torch.bfloat16, device="cpu", batch_invariant=True
    )
    expected = [{"sample": k, "tokens": sampler(seed=3, first_sample=k, temperature=1.0).tokens[0].tolist()} for k in range(22)]
    assert rows(whole) == expected
    assert len({tuple(row["tokens"]) for row in expected}) == 22
    assert sorted(os.listdir(whole)) == [
        "manifest.json",
        "samples-000000000000000-000000000000008.parquet",
        "samples-000000000000009-000000000000017.parquet",
        "samples-000000000000018-000000000000021.parquet",
    ]


@pytest.mark.parametrize(("size", "shard"), [(1, 22), (5, 3), (16, 16)])
def test_a_sample_does_not_depend_on_batch_or_shard(whole, tmp_path, size, shard):
    generate(22, tmp_path, Job(**vars(JOB) | {"batch": size}), shard_size=shard)
    assert rows(tmp_path) == rows(whole)


def test_on_a_cpu_samplers_are_batch_invariant():
    """Tokens alone would seldom show it: a row's bits change in the last place."""
    assert JOB.build().sampler.batch_invariant


def test_a_worker_leaves_a_shard_alone_that_another_made(whole):
    path = whole / "samples-000000000000009-000000000000017.parquet"
    stamp, worker = path.stat().st_mtime_ns, batch.Worker(JOB, None, Shards(0, 22, 9), ParquetFolder(whole))
    assert worker(1) == 9 and path.stat().st_mtime_ns == stamp


def test_a_later_first_sample(whole, tmp_path):
    generate(5, tmp_path, JOB, first_sample=11)
    assert rows(tmp_path) == rows(whole)[11:16]


def test_a_killed_run_goes_on(whole, tmp_path, monkeypatch):
    calls, call = [], job_module.Generator.__call__

    def dies(self, *arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return call(self, *arguments)

    monkeypatch.setattr(job_module.Generator, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(22, tmp_path, JOB, shard_size=9)
    assert list(contents(tmp_path)) == ["samples-000000000000000-000000000000008.parquet"]
    told = []
    summary = generate(22, tmp_path, JOB, shard_size=9, told=lambda done, count: told.append((done, count)))
    assert told == [(9, 22), (18, 22), (22, 22)]
    assert (summary.found, summary.made, summary.count) == (9, 13, 22)
    assert contents(tmp_path) == contents(whole)
    assert len(calls) == 5 + 3 + 1
    assert generate(22, tmp_path, JOB, shard_size=9).made == 0 and len(calls) == 9


@pytest.mark.parametrize("lost", range(3))
def test_a_lost_file_is_made_again_and_no_other(whole, tmp_path, lost):
    generate(22, tmp_path, JOB, shard_size=9)
    paths = sorted(tmp_path.glob("*.parquet"))
    stamps = {path: path.stat().st_mtime_ns for path in paths}
    paths[lost].unlink()
    generate(22, tmp_path, JOB, shard_size=9)
    assert contents(tmp_path) == contents(whole)
    assert [p for p in paths if p.stat().st_mtime_ns != stamps[p]] == [paths[lost]]


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"steps": 3}, {"model": "folder"}, {"batch": 5}, {"temperature": 0.5}, {"solver": "ddpm"}, {"seq_len": 15}],
    ids=lambda change: next(iter(change)),
)
def test_another_job_is_refused_and_nothing_changes(whole, tmp_path, change):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    if "model" in change:
        change = {"model": str(save_ours(tmp_path)), "seq_len": 13}
    with pytest.raises(ValueError, match=f"was begun with {next(iter(change))} .*; name another folder"):
        generate(22, whole, Job(**vars(JOB) | change), shard_size=9)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


@pytest.mark.parametrize(("count", "options"), [(23, {}), (22, {"shard_size": 8}), (22, {"first_sample": 1})])
def test_another_range_is_refused(whole, count, options):
    with pytest.raises(ValueError, match=r"was begun with (count|shard|first_sample)"):
        generate(count, whole, JOB, **({"shard_size": 9} | options))


def test_weights_that_changed_are_another_model(tmp_path):
    folder = save_ours(tmp_path / "model")
    job = Job(str(folder), steps=1, batch=2)
    generate(3, tmp_path / "out", job)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="was begun with model"):
        generate(3, tmp_path / "out", job)


class TestPrompts:
    TEXTS = ("to be", "or not to be, that is the question", "x", "to be", "a longer one")

    @pytest.fixture(autouse=True)
    def an_encoder(self, monkeypatch):
        def load(config, prompt_len, device):
            return lambda prompts: encode(StandInEncoder(config.hidden_dim), prompts, prompt_len, 1)

        monkeypatch.setattr(job_module, "load_encoder", load)
        monkeypatch.setattr(encoder_module, "prompt_tokenizer", lambda path: (StandInEncoder(64).tokenizer, 40))

    @pytest.fixture
    def job(self, tmp_path):
        """Of a model whose config names an encoder."""
        randomized(LDLMConfig.preset("tiny", encoder="stand-in")).save_pretrained(tmp_path / "model")
        return Job(**vars(JOB) | {"model": str(tmp_path / "model"), "prompt_len": 34})

    def prompts(self, path, texts=TEXTS):
        return Prompts(jsonl(path, [{"prompt": text} for text in texts]))

    def test_each_sample_has_its_prompt(self, job, tmp_path):
        job = Job(**vars(job) | {"guidance_scale": 2.0})
        generate(self.prompts(tmp_path / "p.jsonl"), tmp_path / "a", job, shard_size=3)
        found = rows(tmp_path / "a")
        assert [row["prompt"] for row in found] == list(self.TEXTS)
        changed = self.prompts(tmp_path / "q.jsonl", (*self.TEXTS[:2], "another", *self.TEXTS[3:]))
        generate(changed, tmp_path / "b", Job(**vars(job) | {"batch": 2}), shard_size=4)
        assert [one == two for one, two in zip(found, rows(tmp_path / "b"), strict=True)] == [True, True, False, True, True]

    def test_other_prompts_are_refused(self, job, tmp_path):
        generate(self.prompts(tmp_path / "p.jsonl"), tmp_path / "a", job)
        with pytest.raises(ValueError, match="was begun with prompts"):
            generate(self.prompts(tmp_path / "q.jsonl", self.TEXTS[::-1]), tmp_path / "a", job)

    def test_one_that_is_too_long_is_named_before_anything_is_made(self, job, tmp_path, monkeypatch):
        monkeypatch.setattr(batch, "STRIDE", 2)
        prompts = self.prompts(tmp_path / "p.jsonl", (*self.TEXTS, "a" * 35, "x"))
        with pytest.raises(ValueError, match=r"line 6 of .*p.jsonl has 35 tokens; prompt_len allows from 1 to 34"):
            generate(prompts, tmp_path / "a", job)
        assert not (tmp_path / "a").exists()
        assert generate(prompts, tmp_path / "a", Job(**vars(job) | {"prompt_len": 35})).made == 7

    def test_a_run_that_goes_on_does_not_read_them_all_again(self, job, tmp_path, monkeypatch):
        prompts = self.prompts(tmp_path / "p.jsonl")
        generate(prompts, tmp_path / "a", job, shard_size=2)
        (tmp_path / "a" / "samples-000000000000002-000000000000003.parquet").unlink()
        read, found = [], prompts.read
        monkeypatch.setattr(prompts, "read", lambda first, count: read.append((first, count)) or found(first, count))
        assert generate(prompts, tmp_path / "a", job, shard_size=2).made == 2 and read == [(2, 2)]

    def test_a_job_without_room_for_them(self, tmp_path):
        with pytest.raises(ValueError, match="prompt_len of at least 1"):
            generate(self.prompts(tmp_path / "p.jsonl"), tmp_path / "a", JOB)
        with pytest.raises(ValueError, match="needs prompts"):
            generate(3, tmp_path / "a", Job(**vars(JOB) | {"prompt_len": 8}))
        with pytest.raises(ValueError, match="its config names none"):
            generate(self.prompts(tmp_path / "p.jsonl"), tmp_path / "a", Job(**vars(JOB) | {"prompt_len": 8}))
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("error", [ValueError("no such encoder"), MemoryError("too little")])
def test_what_only_building_finds_leaves_nothing(tmp_path, monkeypatch, error):
    def refuses(job):
        raise error

    monkeypatch.setattr(Job, "build", refuses)
    with pytest.raises(type(error), match=str(error)):
        generate(3, tmp_path / "out", JOB)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "build", lambda job: pytest.fail("built"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty \(it holds notes.txt\); name a new folder"):
        generate(3, tmp_path, JOB)


def test_a_drivers_machine_may_lack_the_workers_card():
    assert Job("tiny", device="cuda", backend="cuda").check() == Job("tiny", device="cuda:1", backend="triton").check() == 64


def test_a_card_by_its_number(tmp_path, monkeypatch):
    """It is the one that is used, and its files are those of any card."""

    def refuses(source, output, job, **options):
        raise ValueError(f"{job.batch} at once on {job.device}")

    monkeypatch.setattr(command_module, "resolve_device", torch.device)
    monkeypatch.setattr(command_module, "generate", refuses)
    said = message("generate", "tiny", "--count", 3, "--device", "cuda:1", "--output", tmp_path)
    assert said == "64 at once on cuda:1"
    assert Job("tiny", device="cuda:1").manifest() == Job("tiny", device="cuda").manifest()


class TestCommand:
    def test_files(self, whole, tmp_path):
        options = ("--count", 22, "--steps", 2, "--batch", 4, "--seq-len", 16, "--temperature", 1, "--seed", 3, "--shard", 9)
        result = read("generate", "tiny", *options, "--device", "cpu", "--output", tmp_path)
        assert contents(tmp_path) == contents(whole)
        assert (result["samples"], result["found"], result["made"], result["workers"]) == (22, 0, 22, 1)
        assert result["tokens_per_s"] == pytest.approx(22 * 16 / result["seconds"])
        assert read("generate", "tiny", *options, "--device", "cpu", "--output", tmp_path)["found"] == 22
        assert "was begun with seed 3, and this run has 4" in message(
            "generate", "tiny", *options, "--seed", 4, "--device", "cpu", "--output", tmp_path
        )

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (("--count", 3), "--output names their folder"),
            (("--output", "{}"), "either --count or --prompts"),
            (("--output", "{}", "--count", 3, "--prompts", "x"), "either --count or --prompts"),
            (("--output", "{}", "--count", 3, "--seq-len", 65), "this model has 64 latents"),
            (("--output", "{}", "--count", 3, "--solver", "euler"), "solver"),
            (("--output", "{}", "--count", 3, "--workers", 2), "2 workers need Ray"),
            (("--output", "{}", "--count", 3, "--guidance-scale", 2), "guidance needs context_len"),
            (("--output", "{}", "--prompts", "none.jsonl"), "No such file"),
            (("--output", "{}", "--prompts", ""), "prompts is ''; it must be"),
            (("--output", "{}", "--count", 3, "--temperature", 1e39), "temperature is 1e+39; it must be a finite number of at"),
            (("--output", "{}", "--count", 3, "--guidance-scale", 1e39), "guidance_scale is 1e+39; it must be a finite number"),
            (("--output", "{}", "--count", 3, "--seed", 2**64), "seed is 18446744073709551616; it must be a whole number from"),
            (("--output", "{}", "--count", 3, "--device", "foo"), "unknown device 'foo'; known devices: cpu, cuda, cuda:N"),
            (("--output", "{}", "--count", 3, "--device", "cpu", "--backend", "cuda"), "attention cannot run on cpu"),
            (("--output", "{}", "--count", 3, "--device", "foo", "--ray", "local"), "unknown device 'foo'"),
            (("--output", "{}", "--count", 3, "--device", "cuda:x", "--ray", "local"), "unknown device 'cuda:x'"),
            (("--output", "{}", "--count", 3, "--device", "cuda:1", "--ray", "local"), "Ray chooses each worker's card"),
            (("--output", "{}", "--count", 3, "--tokenizer", "/nowhere"), "/nowhere gives no tokenizer"),
            (("--output", "{}", "--count", 3, "--device", "cpu", "--batch", 10**9), "GB are free"),
            (("--output", "{}", "--count", 3, "--ray", "127.0.0.1:1"), "no Ray cluster answers"),
            (("--workers", 2), "belong to --output"),
            (("--output", "{}", "--count", 3, "--prompt-len", 9), "--prompt-len belongs to --prompt and --prompts"),
            (("--prompt-len", 9), "belong to --prompt and --prompts"),
            (("--guidance-scale", 2), "belong to --prompt and --prompts"),
            (("--prompt", "x", "--output", "{}"), "--prompts FILE goes with --output"),
            (("--prompt", "x"), "its config names none"),
        ],
    )
    def test_bad_input(self, tmp_path, options, expected):
        folder = tmp_path / "out"
        assert expected in message("generate", "tiny", *(str(o).replace("{}", str(folder)) for o in options))
        assert not folder.exists()


def test_nothing_of_the_extra_is_imported_without_it():
    extra = ("ray", "fastapi", "uvicorn", "starlette", "pydantic", "prometheus_client", "pyarrow", "datasets")
    script = (
        f"import sys, dllm_kernels.cli.main, dllm_kernels.batch, dllm_kernels.serving; "
        f"print([m for m in {extra} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_ray_the_command_runs_on_this_machine(whole, tmp_path):
    script = "import sys; sys.modules['ray'] = None\nfrom dllm_kernels.cli.main import main; main()"
    options = {"count": 22, "steps": 2, "batch": 4, "seq-len": 16, "temperature": 1, "seed": 3, "shard": 9, "device": "cpu"}
    words = [str(word) for name, value in (options | {"output": tmp_path}).items() for word in (f"--{name}", value)]
    command = [sys.executable, "-c", script, "generate", "tiny", *words]
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path) == contents(whole)
    result = subprocess.run([*command, "--ray", "local"], capture_output=True, text=True)
    assert result.returncode == 2 and "Ray is not installed: pip install 'dllm-kernels[scale]'" in result.stderr


def test_memory_does_not_grow_with_the_count(tmp_path, monkeypatch):
    def no_work(job):
        return lambda first, count, prompts: {"sample": range(first, first + count), "tokens": np.zeros((count, 64), np.int32)}

    monkeypatch.setattr(Job, "build", no_work)
    peaks, before = [], pa.total_allocated_bytes()
    for count in (500, 500, 20_000):
        tracemalloc.start()
        generate(count, tmp_path / str(len(peaks)), Job("tiny", batch=50), shard_size=250)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() == before
    # The first run imports.
    assert peaks[2] < peaks[1] + 50_000 < 20_000 * 64 * 4 / 10


def test_the_bar_shows_the_rate_and_the_time_left(tmp_path):
    said = run("generate", "tiny", "--count", 9, "--shard", 3, "--steps", 1, "--device", "cpu", "--output", tmp_path).stderr
    assert re.search(r"samples .* 9/9 [\d,]+ tok/s \d:\d\d:\d\d", " ".join(said.split()))


def test_without_the_extra_the_command_says_so(tmp_path):
    script = "import sys; sys.modules['pyarrow'] = sys.modules['pyarrow.parquet'] = None\n"
    script += "from dllm_kernels.cli.main import main; main()"
    command = [sys.executable, "-c", script, "generate", "tiny", "--count", "3", "--output", str(tmp_path / "x")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "pip install 'dllm-kernels[scale]'" in result.stderr.splitlines()[-1]


def test_a_shard_is_32_batches_where_nothing_is_said(tmp_path):
    generate(batch.BATCHES_A_SHARD * 2 + 1, tmp_path, Job("tiny", steps=1, batch=2, seq_len=1))
    assert sorted(contents(tmp_path)) == [
        "samples-000000000000000-000000000000063.parquet",
        "samples-000000000000064-000000000000064.parquet",
    ]
