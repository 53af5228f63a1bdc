"""Ops: one formula a file, its reference, its custom op and who serves it on which device."""
