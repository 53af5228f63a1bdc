"""The op linear: see op.py."""
