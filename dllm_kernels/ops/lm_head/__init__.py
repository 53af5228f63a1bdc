"""The op lm_head: see op.py."""
