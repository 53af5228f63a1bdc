"""`dllm-kernels evaluate` from end to end on small random models, each number held to another way to it."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("mauve")

from dllm_kernels import LDLM, FusedSampler
from dllm_kernels.evaluation import measures
from dllm_kernels.evaluation.judge import Judge
from dllm_kernels.evaluation.ngram import NgramModel
from dllm_kernels.evaluation.results import HUMAN, read
from dllm_kernels.evaluation.texts import documents, tokenised, windows
from dllm_kernels.model.tokenizer import TextTokenizer
from tests.cli.command import message, run
from tests.evaluation.words import save_encoder, save_judge, save_model

SAMPLES, LENGTH = 6, 24
CPU = torch.device("cpu")


def words(count, seed):
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(4, 101)}" for _ in range(count))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, its encoder, a judge, held-out text, and a training text that holds two of the held-out documents."""
    root = tmp_path_factory.mktemp("files")
    save_model(root / "model", seq_len=LENGTH)
    save_encoder(root / "encoder")
    save_judge(root / "judge")
    save_judge(root / "second", seed=1)
    held_out = [words(2 * LENGTH + 5, seed) for seed in range(SAMPLES)]
    (root / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
    (root / "train.txt").write_text(f"{words(30, 77)}\n\n{words(9, 78)}\n{held_out[0]}\n\n \n{held_out[3]} {words(40, 79)}\n")
    return root


OPTIONS = ("--samples", SAMPLES, "--steps", "2,1", "--solver", "ddim", "--batch", 4, "--dtype", "fp32", "--device", "cpu")


def command(files, *more):
    given = ("--held-out", files / "held.jsonl", "--judge", files / "judge", "--output", files / "out.json")
    return ("evaluate", files / "model", *given, *OPTIONS, *more)


@pytest.fixture(scope="module")
def found(files):
    more = ("--training", files / "train.txt", "--encoder", files / "encoder", "--prompt-len", 7, "--seed", 3)
    # Hot enough for special tokens to be among the samples.
    more += ("--temperature", 9, "--grid", "log_snr:-3:2", "--judge", files / "second")
    run(*command(files, *more))
    return read(files / "out.json")


class TestEvaluation:
    def test_rows(self, files, found):
        assert found.complete and found.left_out == [] and found.took_s > 0
        named = [(row.source, row.solver, row.steps, row.samples) for row in found.rows]
        expected = [(HUMAN, None, None), ("judge", None, None), ("model", "ddim", 1), ("model", "ddim", 2)]
        assert named == [(*row, SAMPLES) for row in expected]
        assert (found.model, found.judge, found.settings["seq_len"]) == ("model", "judge", LENGTH)
        assert [row.length for row in found.rows[:2]] == [LENGTH, LENGTH]
        assert all(row.tokens_per_s > 0 for row in found.rows[1:]) and found.rows[0].tokens_per_s is None
        assert found.parameters == sum(p.numel() for p in LDLM.from_pretrained(files / "model").parameters())

    def test_the_models_rows_are_its_samples(self, files, found):
        tokenizer, judge = TextTokenizer(files / "model"), Judge(files / "judge", CPU)
        sampler = FusedSampler.from_pretrained(
            files / "model", num_steps=2, batch_size=4, grid=("log_snr", -3, 2), dtype=torch.float32, device="cpu"
        )
        drawn = torch.cat([sampler(3, first, temperature=9.0).tokens for first in (0, 4)])[:SAMPLES].tolist()
        kept = [tokenizer.words(row) for row in drawn]
        assert any(len(tokens) < LENGTH for tokens in kept)
        row = found.row("ddim", 2)
        assert row.examples == [tokenizer.text(tokens) for tokens in drawn[:3]]
        assert row.perplexity == pytest.approx(judge([tokenizer.text(tokens) for tokens in drawn]).perplexity, rel=1e-4)
        assert row.entropy == measures.entropy(kept) and row.mean_entropy == measures.mean_entropy(kept)
        assert [row.distinct_1, row.distinct_2, row.distinct_3] == [measures.distinct(kept, n) for n in (1, 2, 3)]
        assert row.length == np.mean([len(tokens) for tokens in kept]) and row.memorised == 0

    def test_further_judges(self, files, found):
        """Another causal model, and an n-gram model of the held-out text that is not measured."""
        tokenizer, second = TextTokenizer(files / "model"), Judge(files / "second", CPU)
        cut = windows(files / "held.jsonl", tokenizer, LENGTH, 3)
        rest = NgramModel(cut[SAMPLES:], 3, LDLM.from_pretrained(files / "model").config.vocab_size)
        assert all(list(row.other_perplexities) == ["second", "3-gram"] for row in found.rows)
        expected = second([tokenizer.text(tokens) for tokens in cut[:SAMPLES]]).perplexity
        assert found.rows[0].other_perplexities["second"] == pytest.approx(expected, rel=1e-5)
        assert abs(expected / found.rows[0].perplexity - 1) > 1e-3
        assert found.rows[0].other_perplexities[rest.name] == rest.perplexity(cut[:SAMPLES])

    def test_judges_of_one_name_are_refused(self, files):
        copy = files / "other" / "judge"
        shutil.copytree(files / "judge", copy, dirs_exist_ok=True)
        assert "two judges have one name, judge, judge; rename" in message(*command(files, "--judge", copy))

    def test_human_text_is_compared_with_another_half(self, files, found):
        tokenizer, judge = TextTokenizer(files / "model"), Judge(files / "judge", CPU)
        cut = windows(files / "held.jsonl", tokenizer, LENGTH, 3)
        first, second = ([tokenizer.text(tokens) for tokens in half] for half in (cut[:SAMPLES], cut[SAMPLES:]))
        row = found.rows[0]
        assert row.perplexity == pytest.approx(judge(first).perplexity, rel=1e-5) and row.examples == []
        assert row.mauve == pytest.approx(measures.mauve(judge(first).features, judge(second).features), abs=1e-6)
        # The training text holds two documents, and so their windows.
        texts = tokenizer.tokens(list(documents(files / "held.jsonl")))
        own = [texts[i][start : start + LENGTH] for i in (0, 3) for start in (0, LENGTH)]
        assert 0 < row.memorised == sum(tokens in own for tokens in cut[:SAMPLES]) / SAMPLES < 1

    def test_abilities(self, found):
        assert found.reconstruction["tokens"] == SAMPLES * LENGTH and 0 <= found.reconstruction["accuracy"] < 0.5
        assert found.prompts["pairs"] == SAMPLES and found.prompts["prompt_len"] == 7
        assert all(0 <= found.prompts[name] <= 1 for name in ("continuations", "lift", "prompts"))

    def test_what_is_left_out_is_said(self, files):
        result = run(*command(files, "--steps", "1", "--output", files / "less.json"))
        less = read(files / "less.json")
        assert less.rows[0].memorised is None and less.reconstruction is None and less.prompts is None
        assert less.left_out == [
            "reconstruction and prompts: the model's config names no encoder",
            "memorisation: no training text was given",
        ]
        assert "Left out: memorisation: no training text was given." in result.stdout and "model, ddim" in result.stdout


class TestTexts:
    def test_documents(self, files, tmp_path):
        found = list(documents(files / "train.txt"))
        assert [len(text.split()) for text in found] == [30, 9 + 2 * LENGTH + 5, 2 * LENGTH + 5 + 40]
        (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
        with pytest.raises(ValueError, match=r"bad\.jsonl, line 2 is not a JSON object with a text"):
            list(documents(tmp_path / "bad.jsonl"))

    def test_windows_lie_within_documents(self, files):
        tokenizer = TextTokenizer(files / "model")
        cut = windows(files / "train.txt", tokenizer, 20, 0)
        texts = [tokenizer.tokens([text])[0] for text in documents(files / "train.txt")]
        assert len(cut) == sum(len(text) // 20 for text in texts)
        assert sorted(cut) == sorted(text[i : i + 20] for text in texts for i in range(0, len(text) - 19, 20))
        assert cut == windows(files / "train.txt", tokenizer, 20, 0) != windows(files / "train.txt", tokenizer, 20, 1)

    def test_the_windows_of_a_training_run_are_its_documents_again(self, files, tmp_path):
        tokenizer = TextTokenizer(files / "model")
        parts = {"training": [[5, 6, 7, 8, 9, 1], [10, 1], [11, 12, 13, 1]], "held_out": [[20, 21, 22, 23, 24, 25, 26, 27, 1]]}
        counts = {}
        for part, texts in parts.items():
            rows = [text[i : i + 4] for text in texts for i in range(0, len(text), 4)]
            # Length, prompt length, four tokens padded with 2, two tokens of a prompt.
            table = np.array([[len(row), 0, *row, *[2] * (4 - len(row)), 99, 99] for row in rows], dtype=np.uint16)
            table.tofile(tmp_path / f"{part}.bin")
            counts[part] = len(rows)
        recipe = {"seq_len": 4, "prompt_tokens": 2, "end_token": 1, "vocabulary": tokenizer.vocabulary_hash()}
        (tmp_path / "windows.json").write_text(json.dumps({"recipe": recipe, "rows": counts, "dtype": "uint16"}))
        assert list(tokenised(tmp_path, tokenizer, "training")) == [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
        assert windows(tmp_path, tokenizer, 4, 0) in (
            [[20, 21, 22, 23], [24, 25, 26, 27]],
            [[24, 25, 26, 27], [20, 21, 22, 23]],
        )
        # Without an end token a document is over where a window is not full.
        (tmp_path / "windows.json").write_text(
            json.dumps({"recipe": recipe | {"end_token": None}, "rows": counts, "dtype": "uint16"})
        )
        assert list(tokenised(tmp_path, tokenizer, "held_out")) == [[20, 21, 22, 23, 24, 25, 26, 27, 1]]
        assert next(tokenised(tmp_path, tokenizer, "training")) == [5, 6, 7, 8, 9, 1]
        overlapping = {"recipe": recipe | {"end_token": None, "stride": 2}, "rows": counts, "dtype": "uint16"}
        (tmp_path / "windows.json").write_text(json.dumps(overlapping))
        with pytest.raises(ValueError, match="overlap and have no end token, so where a document ends is not known"):
            list(tokenised(tmp_path, tokenizer, "training"))
        other = {"recipe": recipe | {"vocabulary": "0"}, "rows": counts, "dtype": "uint16"}
        (tmp_path / "windows.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match="was made with another vocabulary than that of the model's tokenizer"):
            windows(tmp_path, tokenizer, 4, 0)
        (tmp_path / "windows.json").write_text("{}")
        with pytest.raises(ValueError, match="holds no token windows"):
            list(tokenised(tmp_path, tokenizer, "training"))


class TestBadInput:
    @pytest.mark.parametrize(
        "more, said",
        [
            (("--steps", "1,x"), "steps is '1,x'; it must be whole numbers with commas between them, such as 1,10,25"),
            (("--steps", "0,4"), "steps has 0; each must be at least 1"),
            (("--solver", "euler"), "unknown solver 'euler'; known solvers: ddim, ddpm, dpmpp_2m"),
            (("--grid", "1,0.5,0"), "the times themselves fit one number of steps; grid must be auto, t or log_snr:START:END"),
            (("--grid", "log_snr:3:1"), "the log-SNR grid goes from 3.0 to 1.0; its ends must be finite and rise"),
            (("--held-out", "nowhere"), "nowhere is neither a file nor a folder"),
            (("--training", "nowhere"), "nowhere is neither a file nor a folder"),
            (("--judge", "./nowhere"), "the judge ./nowhere is not a file or folder, and not a hub id"),
            (("--tokenizer", "./nowhere"), "./nowhere gives no tokenizer: "),
            (("--samples", "1"), "Invalid value for '--samples': "),
        ],
    )
    def test_arguments(self, files, more, said):
        assert message(*command(files, *more)).startswith(said)

    def test_too_little_held_out_text(self, files):
        said = message(*command(files, "--samples", "7"))
        assert said.endswith(
            "held.jsonl has 12 windows of 24 tokens, and 7 samples need 14: half to measure, half to compare with"
        )

    def test_a_training_text_that_cannot_be_read_keeps_what_was_measured(self, files, tmp_path):
        (tmp_path / "bad.jsonl").write_text("{")
        more = ("--training", tmp_path / "bad.jsonl", "--steps", 1, "--output", tmp_path / "kept.json")
        result = run(*command(files, *more), code=2)
        assert result.stderr.splitlines()[-1].startswith(f"dllm-kernels: {tmp_path / 'bad.jsonl'}, line 1 is not a JSON object")
        kept = read(tmp_path / "kept.json")
        assert not kept.complete and [row.source for row in kept.rows] == [HUMAN, "judge", "model"]

    def test_a_bug_keeps_its_traceback(self, files, monkeypatch):
        def bug(*arguments):
            raise ValueError("a bug")

        monkeypatch.setattr("dllm_kernels.evaluation.measures.mauve", bug)
        with pytest.raises(ValueError, match="a bug"):
            run(*command(files))

    def test_an_output_that_cannot_be_written(self, files, tmp_path):
        (tmp_path / "file").write_text("kept")
        assert str(tmp_path / "file") in message(*command(files, "--output", tmp_path / "file" / "out.json"))

    def test_an_encoder_that_does_not_fit(self, files, tmp_path):
        save_model(tmp_path / "wide", hidden_dim=32, seq_len=LENGTH)
        arguments = list(command(files, "--encoder", files / "encoder"))
        arguments[1] = tmp_path / "wide"
        assert "has hidden states of width 64, and the model's hidden_dim is 32" in message(*arguments)

    def test_the_library_is_not_installed(self, files, monkeypatch):
        monkeypatch.setattr("dllm_kernels.cli.evaluate.importlib.util.find_spec", lambda name: None)
        assert message(*command(files)) == "evaluate needs mauve and transformers: pip install 'dllm-kernels[eval]'"

    def test_a_file_that_is_no_evaluation(self, tmp_path):
        (tmp_path / "a.json").write_text("{")
        with pytest.raises(ValueError, match=f"^{tmp_path / 'a.json'} is not JSON"):
            read(tmp_path / "a.json")
        (tmp_path / "a.json").write_text('{"schema": "dllm-kernels bench 1"}')
        with pytest.raises(ValueError, match=f"^{tmp_path / 'a.json'} is not an evaluation"):
            read(tmp_path / "a.json")
        (tmp_path / "a.json").write_text('{"schema": "dllm-kernels evaluation 1", "rows": []}')
        with pytest.raises(ValueError, match=f"^{tmp_path / 'a.json'} does not have the fields of"):
            read(tmp_path / "a.json")
