"""Text to windows, and hidden states that are computed once."""

import json
import os

import numpy as np
import pytest
import torch

from dllm_kernels.evaluation.texts import tokenised
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.tokenizer import TextTokenizer
from dllm_kernels.training.data import Order, Source
from dllm_kernels.training.hidden import BLOCK, Cache, HiddenStates, moments
from dllm_kernels.training.settings import DataSettings
from dllm_kernels.training.windows import cut, documents, windows
from tests.training.parts import refusal, save_parts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def encoder(parts):
    return Encoder(parts / "encoder", -2, "cpu")


def settings(parts, tmp_path, **changes):
    fields = {"windows": str(tmp_path / "windows"), "text": (str(parts / "text.jsonl"),), "held_out": 0.1}
    fields |= {"cache": str(tmp_path / "cache"), "prompt_tokens": 4}
    return DataSettings(**(fields | changes))


class TestWindows:
    def test_documents_are_cut_whole(self, parts, encoder, tmp_path):
        made = windows(settings(parts, tmp_path), 8, 71, 0, encoder)
        texts = [json.loads(line)["text"] for line in (parts / "text.jsonl").open()]
        wanted = [[int(word[1:]) for word in text.split()] + [3] for text in texts]
        found: list[list[int]] = []
        for part in made.values():
            tokens, mask = part.tokens(slice(0, len(part)))
            prompts, prompt_mask = part.prompts(slice(0, len(part)))
            previous: list[int] = []
            for row, there, prompt, prompt_there in zip(tokens, mask, prompts, prompt_mask, strict=True):
                words, before = row[there].tolist(), prompt[prompt_there].tolist()
                if not before:
                    found.append([])
                # The prompt is the end of what stands before the window in its document.
                assert before == found[-1][len(found[-1]) - len(before) :]
                assert len(before) <= 4 and (previous == [] or before or previous[-1] == 3)
                found[-1] += words
                previous = words
        assert sorted(found) == sorted(wanted)
        held_out = len(made["held_out"]) / (len(made["training"]) + len(made["held_out"]))
        assert 0.04 < held_out < 0.2 and made["training"].rows.dtype == np.uint16

    @pytest.mark.parametrize(
        "length, starts", [(1, [0]), (8, [0]), (9, [0, 3]), (11, [0, 3]), (12, [0, 3, 6]), (17, [0, 3, 6, 9])]
    )
    def test_overlapping_windows_begin_a_stride_apart_until_the_end_is_in_one(self, length, starts):
        tokens = list(range(100, 100 + length))
        rows = list(cut(tokens, 8, 3, 4, np.random.default_rng(0)))
        assert [window for window, _ in rows] == [tokens[start : start + 8] for start in starts]
        assert all(prompt == tokens[start - len(prompt) : start] for start, (_, prompt) in zip(starts, rows, strict=True))

    def test_overlapping_windows_are_their_documents_again(self, parts, encoder, tmp_path):
        made = windows(settings(parts, tmp_path, stride=3), 8, 71, 0, encoder)
        texts = [json.loads(line)["text"] for line in (parts / "text.jsonl").open()]
        tokenizer = TextTokenizer(parts / "encoder")
        found = {part: list(tokenised(tmp_path / "windows", tokenizer, part)) for part in made}
        assert sorted(found["training"] + found["held_out"]) == sorted(tokenizer.tokens(texts))
        # With an end token each; held-out windows do not overlap.
        values = {part: int(made[part].rows[:, 0].sum()) / sum(len(text) + 1 for text in found[part]) for part in made}
        assert values["held_out"] == 1 and 2 < values["training"] < 8 / 3

    def test_prompt_lengths_are_spread_over_what_there_is(self):
        generator = np.random.default_rng(0)
        lengths = [len(rows[1]) for _ in range(300) for rows in list(cut(list(range(30)), 10, 10, 8, generator))[1:]]
        assert set(lengths) == set(range(1, 9)) and all(40 < lengths.count(n) < 110 for n in range(1, 9))
        assert next(cut(list(range(6)), 3, 3, 8, np.random.default_rng(1))) == [[0, 1, 2], []]

    def test_a_machine_without_the_text_uses_what_was_made(self, parts, encoder, tmp_path, monkeypatch):
        made = windows(settings(parts, tmp_path), 8, 71, 0, encoder)
        monkeypatch.setattr("dllm_kernels.training.windows.documents", None)
        again = windows(settings(parts, tmp_path, text=("elsewhere/text.jsonl",)), 8, 71, 0, encoder)
        assert np.array_equal(again["training"].rows, made["training"].rows)
        found = refusal(lambda: windows(settings(parts, tmp_path), 16, 71, 0, encoder))
        assert found.startswith(
            f"{tmp_path}/windows was made from other settings (seq_len was 8 and is 16); name another folder"
        )

    def test_nothing_is_left_of_text_that_does_not_fit(self, parts, encoder, tmp_path):
        (tmp_path / "bad.jsonl").write_text('{"text": "w4 w5"}\n{"text": 3}\n')
        (tmp_path / "few.jsonl").write_text('{"text": "w4 w5"}\n')
        for text, expected in (("bad", "cannot be read"), ("few", "the text gives 1 training and 0 held-out windows")):
            data = settings(parts, tmp_path, text=(str(tmp_path / f"{text}.jsonl"),))
            found = refusal(lambda data=data: windows(data, 8, 71, 0, encoder))
            assert expected in found or "no text in the field" in found
            assert not (tmp_path / "windows").exists()

    def test_max_windows(self, parts, encoder, tmp_path):
        made = windows(settings(parts, tmp_path, max_windows=50), 8, 71, 0, encoder)
        assert len(made["training"]) == 50


class TestText:
    @pytest.mark.parametrize(
        "unit, expected", [("line", ["w4 w5", "w6", "w7"]), ("paragraph", ["w4 w5\nw6", "w7"]), ("document", 1)]
    )
    def test_plain_text(self, parts, tmp_path, unit, expected):
        path = tmp_path / "plain.txt"
        path.write_text("w4 w5\nw6\n\nw7\n")
        found = [text.strip() for text in documents(settings(parts, tmp_path, text=(str(path),), unit=unit)) if text.strip()]
        assert len(found) == expected if isinstance(expected, int) else found == expected

    def test_a_column_of_several_files(self, parts, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.jsonl").write_text(f'{{"body": "w4 {name}"}}\n{{"body": "w5 {name}"}}\n')
        text = tuple(str(tmp_path / f"{name}.jsonl") for name in "ab")
        assert list(documents(settings(parts, tmp_path, text=text, field="body"))) == ["w4 a", "w5 a", "w4 b", "w5 b"]
        found = refusal(lambda: list(documents(settings(parts, tmp_path, text=text))))
        assert found == f"a row of {text[0]} has no text in the field 'text'; it has body"

    def test_names(self, parts, tmp_path):
        def named(*text):
            return refusal(lambda: list(documents(settings(parts, tmp_path, text=text))))

        assert named("gone.jsonl") == "data.text names gone.jsonl, which is not a file"
        assert named("./a", "b.txt") == "data.text must be .jsonl or .json files, .txt files, or one hub id"
        assert "names nothing to make it from" in named()


class Counting:
    """An encoder that counts the rows it computes."""

    def __init__(self, encoder):
        self._encoder, self.rows = encoder, 0
        self.device, self.hidden_dim, self.identity = encoder.device, encoder.hidden_dim, encoder.identity

    def __call__(self, tokens, mask, batch_size=256):
        self.rows += len(tokens)
        return self._encoder(tokens, mask, batch_size)


class TestHiddenStates:
    @pytest.fixture
    def rows(self, parts, encoder, tmp_path):
        return windows(settings(parts, tmp_path), 8, 71, 0, encoder)["training"]

    def states(self, rows, encoder, cache, memory=2**40, **more):
        return HiddenStates(rows.tokens, len(rows), encoder, cache, memory, **more)

    def test_are_the_encoders(self, rows, encoder, tmp_path):
        states = self.states(rows, encoder, Cache(tmp_path / "cache", 10**9))
        index = torch.tensor([3, len(rows) - 1, 3, BLOCK])
        expected = encoder(*rows.tokens(index)).to(torch.bfloat16)
        torch.testing.assert_close(states[index], expected, rtol=1e-2, atol=1e-2)
        assert (states[index] == expected).float().mean() > 0.99

    def test_are_computed_once(self, rows, encoder, tmp_path):
        cache, first, second = Cache(tmp_path / "cache", 10**9), Counting(encoder), Counting(encoder)
        states, again = self.states(rows, first, cache), self.states(rows, second, cache)
        assert first.rows == len(rows) and second.rows == 0 and len(rows) > 2 * BLOCK
        assert torch.equal(states.resident, again.resident)
        # Other tokens in one block, and only that one is computed.
        changed = rows.rows.copy()
        changed[BLOCK + 5, 2] = 4 + changed[BLOCK + 5, 2] % 60
        third = Counting(encoder)
        HiddenStates(type(rows)(changed, 8).tokens, len(rows), third, cache, 2**40)
        assert third.rows == BLOCK

    def test_come_from_disk_or_the_encoder_where_memory_is_short(self, rows, encoder, tmp_path):
        whole = self.states(rows, encoder, Cache(tmp_path / "cache", 0))
        size = BLOCK * 8 * 64 * 2 + 4096
        counting = Counting(encoder)
        states = self.states(rows, counting, Cache(tmp_path / "some", size), memory=0)
        assert states.resident is None and counting.rows == BLOCK
        index = torch.tensor([1, BLOCK + 1, 2, 2 * BLOCK + 3, BLOCK + 1])
        torch.testing.assert_close(states[index], whole[index], rtol=1e-2, atol=1e-2)
        assert counting.rows == BLOCK + 3

    def test_the_folder_keeps_within_its_limit(self, rows, encoder, tmp_path):
        folder, size = tmp_path / "cache", BLOCK * 8 * 64 * 2 + 4096

        def held():
            return sum(path.stat().st_size for path in folder.iterdir())

        self.states(rows, encoder, Cache(folder, 10 * size))
        before = held()
        other = Encoder(encoder.path, -1, "cpu")
        self.states(rows, other, Cache(folder, 4 * size))
        assert before > 2 * size and size < held() <= 4 * size
        # What this run wants is there, the oldest of what the other wanted is not.
        counting = Counting(other)
        self.states(rows, counting, Cache(folder, 4 * size))
        assert counting.rows == 0

    def test_a_run_keeps_its_own_blocks(self, rows, encoder, tmp_path):
        """Room is shared by what a run asks for, first come first served."""
        cache, other = Cache(tmp_path / "cache", 5 * (BLOCK * 8 * 64 * 2 + 4096)), Encoder(encoder.path, -1, "cpu")
        counting = [Counting(encoder), Counting(other)]
        first, second = (self.states(rows, encoder, cache, memory=0) for encoder in counting)
        index = torch.arange(0, len(rows), BLOCK)
        made = [each.rows for each in counting]
        first[index], second[index]
        assert made[0] == len(rows) and counting[0].rows == made[0]
        assert made[1] == BLOCK and counting[1].rows == made[1] + len(index) - 1

    def test_what_another_run_is_writing_is_let_be(self, tmp_path):
        cache = Cache(tmp_path / "cache", 10**4)
        theirs = [cache.folder / f"{name * 64}.safetensors{end}" for name, end in (("a", ""), ("b", "-1"), ("c", "-2"))]
        for path in theirs:
            path.write_bytes(bytes(6000))
        os.utime(theirs[2], (0, 0))
        (cache.folder / f"{'d' * 64}.safetensors").symlink_to("nowhere")
        assert cache.reserve(["mine"], 5000) == ["mine"] and cache.reserve(["more"], 5000) == []
        cache.make_room()
        assert [path.exists() for path in theirs] == [False, True, False]

    def test_a_kill_leaves_no_block_in_part(self, rows, encoder, tmp_path, monkeypatch):
        def killed(*arguments, **more):
            raise KeyboardInterrupt

        cache = Cache(tmp_path / "cache", 10**9)
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.rename", killed)
            with pytest.raises(KeyboardInterrupt):
                self.states(rows, encoder, cache)
        assert not list(cache.folder.glob("*.safetensors"))
        counting = Counting(encoder)
        self.states(rows, counting, cache)
        assert counting.rows == len(rows)

    def test_processes_share_the_work(self, rows, encoder, tmp_path):
        cache, counting = Cache(tmp_path / "cache", 10**9), [Counting(encoder), Counting(encoder)]
        for rank in (1, 0):
            # Each process waits for the other's blocks; here, one after the other, the first finds none and goes on.
            self.states(rows, counting[rank], cache, part=(rank, 2))
        assert counting[0].rows == sum(min(BLOCK, len(rows) - start) for start in range(0, len(rows), 2 * BLOCK))

    def test_moments(self, rows, encoder, tmp_path):
        states = self.states(rows, encoder, Cache(tmp_path / "cache", 0))
        mean, deviation = moments(states, rows.tokens, len(rows))
        _, mask = rows.tokens(slice(0, len(rows)))
        values = states.resident.double()[mask]
        torch.testing.assert_close(mean, values.mean(0).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(deviation, values.std(0, unbiased=False).float(), rtol=1e-5, atol=1e-6)


class TestBatches:
    def test_a_batch_is_its_windows(self, parts, encoder, tmp_path):
        rows = windows(settings(parts, tmp_path), 8, 71, 0, encoder)["training"]
        index = torch.tensor([5, 0, 77])
        for data in (settings(parts, tmp_path), settings(parts, tmp_path, memory_share=0.0)):
            batch = Source(rows, encoder, data, Cache(tmp_path / "cache", 10**9)).batch(index)
            tokens, mask = rows.tokens(index)
            prompts, prompt_mask = rows.prompts(index)
            assert torch.equal(batch.tokens, tokens) and torch.equal(batch.mask, mask)
            assert torch.equal(batch.context_mask, prompt_mask)
            torch.testing.assert_close(batch.hidden.float(), encoder(tokens, mask), rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(batch.context.float(), encoder(prompts, prompt_mask), rtol=2e-2, atol=2e-2)

    def test_order(self):
        order = Order(10, 3, CPU)
        epochs = [order(10 * epoch, 10).tolist() for epoch in range(3)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3
        assert Order(10, 3, CPU)(7, 6).tolist() == epochs[0][7:] + epochs[1][:3]
        assert Order(10, 4, CPU)(0, 10).tolist() != epochs[0]
        assert Order(3, 0, CPU)(0, 8).shape == (8,)
