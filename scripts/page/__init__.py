"""The page of scripts/report.py: its figures, and its template, style and script."""
