"""The op attention: see op.py."""
