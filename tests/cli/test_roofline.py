"""The command `roofline`."""

import pytest

from tests.cli.command import read, run


def test_json():
    found = read("roofline", "--preset", "open-dllm-35b-a3b", "--steps", 10, "--dtype", "bf16", "--card", "h200")
    size = 2 * (571 * 2048**2 + 248_320 * 2048)
    assert found["folded"]["bytes"] == size
    assert found["as_written"]["bytes"] == size + 2 * (15 * 2048**2 + 10 * 2048)
    assert sum(part["bytes"] for part in found["folded"]["parts"].values()) == size
    assert sum(part["operations"] for part in found["folded"]["parts"].values()) == found["folded"]["operations"]
    assert found["bandwidth_ms"] == found["floor_ms"] == pytest.approx(size / 4.55e9, rel=1e-12)
    assert found["arithmetic_ms"] == pytest.approx(found["folded"]["operations"] / 720e9, rel=1e-12)
    assert found["tokens_per_s"] == pytest.approx(64 / found["floor_ms"] * 1000, rel=1e-12)


def test_a_large_batch_is_bound_by_arithmetic():
    one, many = (read("roofline", "--card", "rtx5090", "--batch", b) for b in (1, 64))
    assert many["bandwidth_ms"] == one["bandwidth_ms"] == one["floor_ms"]
    assert many["floor_ms"] == many["arithmetic_ms"] == pytest.approx(64 * one["arithmetic_ms"], rel=1e-12)
    assert one["card"]["provenance"].startswith("published, not measured here")


def test_a_dtype_without_a_rate():
    found = read("roofline", "--card", "h200", "--dtype", "fp32")
    assert found["arithmetic_ms"] is None and found["card"]["flops"] is None
    assert found["floor_ms"] == found["bandwidth_ms"]
    text = run("roofline", "--card", "h200", "--dtype", "fp32").stdout
    assert "no figure for this dtype's arithmetic" in text and "by arithmetic unknown" in " ".join(text.split())


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr("dllm_kernels.bench.roofline.measure_bandwidth", lambda device: 2e9)
    monkeypatch.setattr("dllm_kernels.bench.roofline.measure_product", lambda device, dtype: 1e9)
    found = read("roofline", "--preset", "tiny", "--device", "cpu")
    assert found["bandwidth_ms"] == pytest.approx(found["folded"]["bytes"] / 2e6, rel=1e-12)
    assert found["arithmetic_ms"] == pytest.approx(found["folded"]["operations"] / 1e6, rel=1e-12)
    assert found["card"]["provenance"].startswith("measured now") and "float32" in found["card"]["provenance"]


def test_table():
    out = run("roofline", "--card", "h200").stdout
    assert "5.807" in out and "5.933" in out and "floor 1.276 ms, 50,146 tok/s" in out
