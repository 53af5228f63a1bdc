"""The op denoise_update: see op.py."""
