"""`python -m dllm_kernels`: the command line."""

from dllm_kernels.cli.main import main

main()
