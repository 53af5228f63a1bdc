"""Triton kernels, one op a file, and the tables of their launch configurations."""
