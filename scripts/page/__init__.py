"""The parts of scripts/report.py's page: its figures, charts and sections."""
