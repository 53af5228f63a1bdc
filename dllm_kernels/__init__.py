"""Fast inference of latent diffusion language models on one GPU."""

from dllm_kernels.inference.pipeline import LDLMPipeline, PipelineOutput
from dllm_kernels.inference.sampler import FusedSampler, SamplerOutput
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.utils.version import __version__ as __version__

__all__ = ["LDLM", "FusedSampler", "LDLMConfig", "LDLMPipeline", "PipelineOutput", "SamplerOutput"]
