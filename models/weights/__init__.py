"""Weights of any source: read, recognised, renamed, and loaded completely or not at all."""
