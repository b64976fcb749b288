"""Heads: four stages in, logits out."""
