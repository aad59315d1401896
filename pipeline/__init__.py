"""The pipeline: worker processes over shared memory, and the operations of a store made of them.

Nouns: a *station* is what a worker does, a generator (station.py); a *driver* runs it, in a process of its own
(worker.py) or inline (inline.py); the *supervisor* starts, watches and ends workers (supervisor.py); the *arena* is the
memory that they share (arena.py); the *topology* says which there are (topology.py). `home` is the supervisor's
process.

Public face: `pipeline.filestore.FileStore` for programs, `pipeline.cli` for people.
"""
