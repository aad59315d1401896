"""Objects and chunks for programs: put, read, received, deleted, in the caller's process, without workers.

Nouns: an *intake* takes bytes through the stages of an ingest (intake.py); a *batch* is what one log record commits
(batch.py), in its turn (turns.py); a *stream* reads an object (reading.py).
"""
