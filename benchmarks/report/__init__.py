"""Every generator of a document of ours: `python -m benchmarks.report` writes docs/ and a block of README.md from results.

A module a page. `files()` of each gives what it writes, by path from the repository's root: the page, and each plot's data
as JSON and its pictures for a light and a dark page. tests/report compares all of it with the tree, byte for byte.
"""
