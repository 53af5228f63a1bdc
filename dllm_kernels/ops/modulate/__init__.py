"""The op modulate: see op.py."""
