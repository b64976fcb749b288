"""Weights of any source: read, recognised, remapped, and loaded wholly or not at all."""
