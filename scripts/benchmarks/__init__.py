"""The measurements of ``scripts/benchmark.py``: each module returns rows of figures; a ratio is measured in one run."""
