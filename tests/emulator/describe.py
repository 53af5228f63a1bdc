"""Writes dllm_kernels/ops/kernels.json, what the kernels have code for: `python -m tests.emulator.describe`."""

from tests.emulator.emulate import ROOT, describe

PATH = ROOT / "dllm_kernels" / "ops" / "kernels.json"

if __name__ == "__main__":
    PATH.write_text(describe())
