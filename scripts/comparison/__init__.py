"""What scripts/compare.py is made of: the runs, their figures, tables and pictures."""
