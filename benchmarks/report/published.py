"""What was published, in one place.

Source: the public post on the open-dllm benchmark ("Qwen3.6 LDLM" on one RTX 5090), T = 64, B = 1, vocabulary 248,320, random
weights, eager float32. Its rows of 4 steps are extrapolated from those of 10.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of the post: tokens a second, and whether its author measured it or extrapolated."""

    preset: str
    steps: int
    tokens_per_s: float
    extrapolated: bool


CARD = "RTX 5090"
TABLE = (
    Published("open-dllm-35b-a3b", 10, 3238, extrapolated=False),
    Published("open-dllm-35b-a3b", 4, 6500, extrapolated=True),
    Published("open-dllm-27b", 10, 745, extrapolated=False),
    Published("open-dllm-27b", 4, 1500, extrapolated=True),
)
SEQ_LEN, BATCH = 64, 1
