"""Batch generation: samples to files, by workers on any number of cards. Ray is imported only where a run asks for it."""

from dllm_kernels.batch.job import Job
from dllm_kernels.batch.prompts import Prompts
from dllm_kernels.batch.run import generate
from dllm_kernels.batch.sink import ParquetFolder

__all__ = ["Job", "ParquetFolder", "Prompts", "generate"]
