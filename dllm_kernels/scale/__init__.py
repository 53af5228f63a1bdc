"""More than one card, more than one machine. Ray is imported where it is used, never by importing this package."""

from dllm_kernels.scale.batch import generate
from dllm_kernels.scale.job import Job
from dllm_kernels.scale.prompts import Prompts
from dllm_kernels.scale.sink import ParquetFolder

__all__ = ["Job", "ParquetFolder", "Prompts", "generate"]
