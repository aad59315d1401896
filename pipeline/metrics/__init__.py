"""What an operation tells Prometheus.

Nouns: *meters* are counters that each process keeps for itself, workers in the arena (meters.py); *figures* are their
sums over all processes of a command, with the stages' counters (figures.py); they become *metrics* by a collector
(collector.py), which are *published*: over HTTP, as a file, by a push (publish.py). Only the last two know Prometheus.
"""
