"""What ``scripts/benchmark.py`` measures: each module gives rows of figures, both sides of a ratio in one run."""
