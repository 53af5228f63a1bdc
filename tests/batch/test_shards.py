"""Shards, their files, and the manifest: what is listed is whole, and belongs to one job."""

import json
import os
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_kernels.batch.shards import Shard, Shards
from dllm_kernels.batch.sink import ASIDE, ParquetFolder

counts = st.integers(1, 300)


@given(first=st.integers(0, 50), count=counts, size=counts)
def test_shards_hold_every_sample_once_in_order(first, count, size):
    shards = Shards(first, count, size)
    samples = [s for i in range(len(shards)) for s in range(shards[i].first, shards[i].first + shards[i].count)]
    assert samples == list(range(first, first + count))
    names = [shards[i].name for i in range(len(shards))]
    assert names == sorted(set(names))
    assert [shards.index(name) for name in names] == list(range(len(shards)))


@given(first=st.integers(0, 50), count=counts, size=counts, data=st.data())
def test_what_is_pending_is_what_no_name_stands_for(first, count, size, data):
    shards = Shards(first, count, size)
    done = data.draw(st.sets(st.integers(0, len(shards) - 1)))
    names = [shards[i].name for i in done] + ["manifest.json", "samples-1-2.parquet", "samples-x.parquet", "samples-"]
    left = shards.pending(names)
    assert left.tolist() == sorted(set(range(len(shards))) - done)
    assert shards.samples(left) == sum(shards[i].count for i in left.tolist())


def test_what_is_pending_takes_nine_bytes_a_shard():
    tracemalloc.start()
    left = Shards(0, 10**10, 10**4).pending(())
    assert len(left) == 10**6 and tracemalloc.get_traced_memory()[1] < 9.1e6
    tracemalloc.stop()


@given(count=counts, batch=counts)
def test_batches_stay_within_their_shard(count, batch):
    parts = list(Shard(7, count).batches(batch))
    assert [s for first, kept in parts for s in range(first, first + kept)] == list(range(7, 7 + count))
    assert all(kept == batch for _, kept in parts[:-1]) and parts[-1][1] <= batch


@pytest.mark.parametrize(
    "name", ["samples-000000000000010-000000000000018.parquet", "samples-000000000000011-000000000000020.parquet"]
)
def test_another_cut_of_the_same_samples_is_no_shard(name):
    shards = Shards(0, 100, 10)
    assert shards.index("samples-000000000000010-000000000000019.parquet") == 1
    assert shards.index(name) is None


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (0, 0, 1), (0, 1, 0), (10**15, 1, 1)])
def test_numbers_that_do_not_fit(numbers):
    with pytest.raises(ValueError, match=r"must be at least|file names hold 15 digits"):
        Shards(*numbers)


def batch(first, count):
    tokens = np.arange(first * 3, (first + count) * 3, dtype=np.int32).reshape(count, 3)
    return {"sample": range(first, first + count), "tokens": tokens, "text": [f"text {i}" for i in range(first, first + count)]}


class TestParquetFolder:
    def test_a_shard_reads_back(self, tmp_path):
        sink = ParquetFolder(tmp_path)
        sink.write(Shard(5, 4), [batch(5, 3), batch(8, 1)])
        assert list(sink.listed()) == ["samples-000000000000005-000000000000008.parquet"]
        assert pq.read_table(tmp_path / next(sink.listed())).to_pylist() == [
            {"sample": k, "tokens": [3 * k, 3 * k + 1, 3 * k + 2], "text": f"text {k}"} for k in range(5, 9)
        ]

    def test_the_same_rows_are_the_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            ParquetFolder(tmp_path / name).claim({})
            ParquetFolder(tmp_path / name).write(Shard(0, 4), [batch(0, 3), batch(3, 1)])
        name = Shard(0, 4).name
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_a_shard_that_fails_on_the_way_is_not_listed(self, tmp_path):
        def failing():
            yield batch(0, 3)
            raise KeyboardInterrupt

        sink = ParquetFolder(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            sink.write(Shard(0, 4), failing())
        assert list(sink.listed()) == [] and not sink.has(Shard(0, 4))
        assert list((tmp_path / ASIDE).iterdir()) == []

    def test_a_shard_of_too_few_rows_is_a_bug(self, tmp_path):
        sink = ParquetFolder(tmp_path)
        with pytest.raises(RuntimeError, match="got 3 rows"):
            sink.write(Shard(0, 4), [batch(0, 3)])
        assert list(sink.listed()) == []

    def test_what_lies_aside_is_not_listed(self, tmp_path):
        sink = ParquetFolder(tmp_path)
        sink.claim({"seed": 0})
        (tmp_path / ASIDE / f"{Shard(0, 4).name}-0123").write_bytes(b"PAR1half")
        assert list(sink.listed()) == []
        sink.sweep()
        assert os.listdir(tmp_path) == ["manifest.json"]

    def test_a_sweep_between_writing_and_renaming_is_harmless_once_the_shard_is_there(self, tmp_path):
        sink = ParquetFolder(tmp_path)

        def swept(done):
            yield batch(0, 4)
            if done:
                sink.write(Shard(0, 4), [batch(0, 4)])
            sink.sweep()

        with pytest.raises(FileNotFoundError):
            sink.write(Shard(0, 4), swept(False))
        sink.write(Shard(0, 4), swept(True))
        assert list(sink.listed()) == [Shard(0, 4).name]

    def test_the_manifest_comes_first_and_stays(self, tmp_path):
        sink = ParquetFolder(tmp_path / "new" / "folder")
        sink.claim({"seed": 1, "model": {"sha256": "ab"}})
        before = (sink.folder / "manifest.json").read_bytes()
        assert json.loads(before) == {"seed": 1, "model": {"sha256": "ab"}}
        sink.claim({"model": {"sha256": "ab"}, "seed": 1})
        for manifest, message in (
            ({"seed": 2, "model": {"sha256": "ab"}}, "was begun with seed 1, and this run has 2"),
            (
                {"seed": 1, "model": {"sha256": "cd"}},
                'begun with model {"sha256": "ab"}, and this run has {"sha256": "cd"}',
            ),
            ({"seed": 1, "model": {"sha256": "ab"}, "steps": 3}, "was begun with steps null, and this run has 3"),
        ):
            with pytest.raises(ValueError, match="name another folder") as caught:
                sink.claim(manifest)
            assert message in str(caught.value)
        assert (sink.folder / "manifest.json").read_bytes() == before

    def test_a_folder_of_other_things_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("...")
        with pytest.raises(ValueError, match=r"is not empty \(it holds thesis.tex\)"):
            ParquetFolder(tmp_path).claim({"seed": 1})
        assert os.listdir(tmp_path) == ["thesis.tex"]

    def test_a_damaged_manifest_is_named(self, tmp_path):
        (tmp_path / "manifest.json").write_text('{"seed":')
        with pytest.raises(ValueError, match=r"manifest.json is not JSON"):
            ParquetFolder(tmp_path).claim({"seed": 1})
