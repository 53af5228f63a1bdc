"""More than one card, more than one machine. Ray is imported where it is used, never by importing this package."""

from dllm_kernels.batch.job import Job
from dllm_kernels.batch.prompts import Prompts
from dllm_kernels.batch.run import generate
from dllm_kernels.batch.sink import ParquetFolder

__all__ = ["Job", "ParquetFolder", "Prompts", "generate"]
