"""Fast inference of latent diffusion language models on one GPU."""

from dllm_kernels.config import LDLMConfig
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.pipeline import LDLMPipeline, PipelineOutput
from dllm_kernels.sampler import FusedSampler, SamplerOutput

__all__ = ["LDLM", "FusedSampler", "LDLMConfig", "LDLMPipeline", "PipelineOutput", "SamplerOutput"]
__version__ = "0.1.0"
