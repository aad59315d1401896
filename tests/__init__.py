"""Tests of Drystone: behaviour, with real processes, files and kills."""
