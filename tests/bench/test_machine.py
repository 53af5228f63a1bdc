"""What a machine reaches, and what a call takes of it."""

import pytest
import torch

from dllm_kernels.bench import machine
from dllm_kernels.bench.machine import MemoryMeter, launches, reaches

CPU = torch.device("cpu")


def test_memory_that_is_let_go_counts():
    meter = MemoryMeter(CPU)
    before = meter.peak()
    if before is None:
        pytest.skip("this system does not tell")
    held = torch.ones(2**26)
    del held
    assert meter.peak() - before > 0.8 * 2**28


def test_a_cpu_has_no_launches():
    assert launches(lambda: None, CPU) is None


def test_a_cpu_reaches_the_better_of_two_products(monkeypatch):
    rates = {torch.bfloat16: 3e12, torch.float32: 2e12}
    monkeypatch.setattr("dllm_kernels.bench.roofline.measure_bandwidth", lambda device: 1e10)
    monkeypatch.setattr("dllm_kernels.bench.roofline.measure_product", lambda device, dtype: rates[dtype])
    monkeypatch.setattr(machine, "measure_product", lambda device, dtype: rates[dtype])
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    assert reaches(CPU).rates == {torch.bfloat16: 3e12}
    rates[torch.bfloat16] = 1e12
    assert reaches(CPU).rates == {torch.bfloat16: 2e12} and reaches(CPU).bandwidth == 1e10
    # Without the instructions the product is not tried.
    rates[torch.bfloat16] = 3e12
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: False)
    assert reaches(CPU).rates == {torch.bfloat16: 2e12}
