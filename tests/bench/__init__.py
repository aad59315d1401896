"""The bench: timings live here, never in tests.

A *work* is what is timed (first ingest, restore …), of one *tool*, on one *data set*; the commands of a work run under
the *reaper*, which accounts for their whole process tree. A *round* takes every tool through all works; the *limit* is
what the bare kernels take for the same. `__main__` runs it all, `compare` two revisions of Drystone.
"""
