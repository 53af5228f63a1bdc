"""Every generator of a document of ours: `python -m benchmarks.report` writes docs/ and a block of README.md from results.

A module a page. `files()` of each gives what it writes, by path from the repository's root: the page, and for every plot its
data as JSON and its pictures, one for light and one for dark screens. tests/report compares all of it with the tree.
"""
