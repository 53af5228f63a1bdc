"""Settings of the whole suite."""

import os

import torch

# Triton's interpreter is chosen when triton is imported, so its tests have a process of their own (Makefile).
collect_ignore_glob = [] if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1" else ["*/test_triton*.py"]
