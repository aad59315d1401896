"""Benchmarks, run by hand: timings live here, never in tests."""
