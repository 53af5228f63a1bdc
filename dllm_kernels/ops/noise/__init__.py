"""The op noise: see op.py."""
