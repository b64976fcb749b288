"""The parts of scripts/compare.py: the runs, their figures, tables and pictures."""
