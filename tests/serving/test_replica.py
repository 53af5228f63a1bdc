"""Rows batched into calls: who shares one, in which order, and that sharing changes no sample."""

import asyncio
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_kernels import FusedSampler, LDLMConfig
from dllm_kernels.inference.weights import RandomModel
from dllm_kernels.serving.batcher import Batcher
from dllm_kernels.serving.replica import Answer, Row, Samplers, Settings, Text, calls

some_rows = st.lists(
    st.builds(
        Row,
        steps=st.sampled_from([1, 2]),
        prompt=st.sampled_from([None, "a", "b"]),
        guidance_scale=st.sampled_from([1.0, 2.0]),
        temperature=st.sampled_from([0.0, 0.7]),
        seed=st.sampled_from([None, 1, 2]),
        sample=st.integers(0, 5),
    ),
    max_size=12,
)


@given(rows=some_rows, largest=st.integers(1, 5))
def test_every_row_is_in_one_call_with_what_a_call_can_hold(rows, largest):
    found = list(calls(rows, largest))
    assert sorted(place for call in found for place in call) == list(range(len(rows)))
    for call in found:
        first, members = rows[call[0]], [rows[place] for place in call]
        assert len(call) <= largest
        for name in ("steps", "guidance_scale", "temperature"):
            assert {getattr(row, name) for row in members} == {getattr(first, name)}
        assert len({row.prompt is None for row in members}) == 1
        if first.temperature > 0 and first.seed is not None:
            assert [(row.seed, row.sample) for row in members] == [(first.seed, first.sample + i) for i in range(len(call))]
        elif first.temperature > 0:
            assert {row.seed for row in members} == {None}


def test_rows_of_any_seeds_share_a_call_at_temperature_zero():
    rows = [Row(1, seed=seed) for seed in (None, 5, 7, None, 5)]
    assert list(calls(rows, 8)) == [[0, 1, 2, 3, 4]]
    assert list(calls(rows, 2)) == [[0, 1], [2, 3], [4]]


def test_drawn_rows_share_a_call_where_they_are_consecutive():
    rows = [Row(1, temperature=1.0, seed=5, sample=sample) for sample in (3, 0, 1, 5, 4)]
    assert list(calls(rows, 8)) == [[1, 2], [0, 4, 3]]


@pytest.fixture(scope="module")
def samplers():
    return Samplers(Settings("tiny", steps=(2, 1), batches=(1, 4)))


def alone(steps, seed, sample, temperature):
    source = RandomModel(LDLMConfig.preset("tiny"))
    options = {"dtype": torch.bfloat16, "device": "cpu", "batch_invariant": True, "logprobs": True}
    out = FusedSampler(source, steps, 1, **options)(seed=seed, first_sample=sample, temperature=temperature)
    return out.tokens[0].tolist(), out.logprobs[0].tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_seeded_row_is_the_samplers_sample_whoever_shares_its_call(samplers, temperature):
    rows = [
        Row(2, temperature=temperature, seed=seed, sample=sample) for seed, sample in ((2**64 - 3, 0), (7, 1), (7, 2), (-1, 9))
    ]
    answers = samplers.run([Row(1), *rows, Row(2), Row(2, temperature=temperature)])
    for row, answer in zip(rows, answers[1:5], strict=True):
        assert (answer.tokens, answer.logprobs) == alone(2, row.seed, row.sample, temperature)
    assert len({tuple(answer.logprobs) for answer in answers}) == 7


def test_what_a_call_says_of_itself(samplers):
    answers = samplers.run([Row(2, seed=i) for i in range(6)])
    assert [(a.rows, a.size, a.leads) for a in answers] == [(4, 4, True), *[(4, 4, False)] * 3, (2, 4, True), (2, 4, False)]
    assert answers[0].seconds == answers[1].seconds > 0 and answers[0].joules is None


def test_unseeded_rows_are_new_ones(samplers):
    (one,), (two,) = samplers.run([Row(1)]), samplers.run([Row(1)])
    assert one.logprobs != two.logprobs


def test_a_row_that_nobody_waits_for_does_not_run(samplers):
    late = Row(2, until=time.time() - 1)
    assert samplers.run([late]) == [None]
    answers = samplers.run([Row(2), late, Row(2)])
    assert answers[1] is None and [a.rows for a in (answers[0], answers[2])] == [2, 2]


def answer(row):
    return Answer([row.sample], [0.0], 0, 1, 1, 0.0, None, True)


class TestBatcher:
    def batches(self, count, largest, wait_s, call_s=0.0, pause_s=0.0):
        """The lists that `run` got for `count` rows that arrive `pause_s` apart, and their answers."""
        lists = []

        def run(rows):
            lists.append([row.sample for row in rows])
            time.sleep(call_s)
            return [answer(row) for row in rows]

        async def everything():
            batcher, tasks = Batcher(run, largest, wait_s), []
            for i in range(count):
                tasks.append(asyncio.create_task(batcher(Row(1, sample=i))))
                await asyncio.sleep(pause_s)
            return await asyncio.gather(*tasks)

        return lists, [a.tokens[0] for a in asyncio.run(everything())]

    def test_rows_that_come_together_run_together_in_order(self):
        lists, answers = self.batches(10, 4, 0.5)
        assert lists == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and answers == list(range(10))

    def test_what_comes_during_a_call_shares_the_next(self):
        lists, answers = self.batches(8, 8, 0, call_s=0.6, pause_s=0.005)
        assert len(lists) == 2 and len(lists[0]) < 3 and answers == list(range(8))

    def test_a_row_waits_no_longer_than_said(self):
        begin = time.monotonic()
        assert self.batches(1, 8, 0.1) == ([[0]], [0])
        assert 0.1 <= time.monotonic() - begin < 2

    def test_an_error_reaches_its_rows_and_the_next_go_on(self):
        def run(rows):
            if rows[0].sample == 0:
                raise RuntimeError("planted")
            return [answer(row) for row in rows]

        async def everything():
            batcher = Batcher(run, 2, 0.5)
            return await asyncio.gather(*(batcher(Row(1, sample=i)) for i in range(4)), return_exceptions=True)

        first, second, *rest = asyncio.run(everything())
        assert str(first) == str(second) == "planted" and [a.tokens for a in rest] == [[2], [3]]

    def test_a_cancelled_row_does_not_run(self):
        ran = []

        def run(rows):
            ran.extend(row.sample for row in rows)
            time.sleep(0.6)
            return [answer(row) for row in rows]

        async def everything():
            batcher = Batcher(run, 1, 0)
            tasks = [asyncio.create_task(batcher(Row(1, sample=i))) for i in range(3)]
            await asyncio.sleep(0.03)
            tasks[1].cancel()
            return await asyncio.gather(tasks[0], tasks[2])

        assert [a.tokens for a in asyncio.run(everything())] == [[0], [2]] and ran == [0, 2]


def test_text_without_a_tokenizer_is_the_numbers():
    assert Text(None)([3, 14, 15]) == "3 14 15"
    pieces, offsets = Text(None).pieces([3, 14, 15])
    assert [("3 14 15"[o : o + len(p)], p) for p, o in zip(pieces, offsets, strict=True)] == [
        ("3", "3"),
        ("14", "14"),
        ("15", "15"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"queue": 0}, "queue is 0"),
        ({"wait_s": 31.0}, "must be at least 0 and below the deadline"),
        ({"steps": ()}, "at least one step count"),
        ({"solver": "ddpm"}, "requests cannot share a call"),
        ({"solver": "euler"}, "solver"),
        ({"guidance": True}, "guidance needs prompts"),
        ({"prompt_len": 8}, "its config names none"),
        ({"batches": (1, 0)}, "batch_size is 0"),
        ({"model": "nothing"}, "unknown preset"),
        ({"device": "foo"}, "^unknown device 'foo'; known devices: cpu, cuda, cuda:N$"),
        ({"device": "meta"}, "device is meta; it must be cpu, cuda or cuda:N"),
        ({"device": "cuda:1"}, "device is cuda:1; Ray chooses each worker's card: it must be cpu or cuda"),
        ({"backend": "cuda"}, "attention cannot run on cpu with backend 'cuda': CUDA kernels do not run on cpu"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
    ],
)
def test_settings_that_do_not_fit(changes, expected):
    with pytest.raises(ValueError, match=expected):
        Settings(**{"model": "tiny"} | changes).check()
    assert Settings("tiny").check() == 64
    # Replicas have their own cards.
    assert Settings("tiny", device="cuda", backend="cuda").check() == 64
