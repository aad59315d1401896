"""Restore: a plan from the manifests, workers that fetch, decode, decompress, verify and write, and a home that counts.

`plan` (in the supervisor) hands out blocks in pack order and counts the parts of large objects; `work` is the worker;
`run` puts them together.
"""
