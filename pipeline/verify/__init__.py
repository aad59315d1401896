"""Verification: records, manifests and shard presence; with data, every cell checksum and every chunk id.

`work` is the worker that reads packs; `run` hands packs out, checks the rest, and sums up.
"""
