"""Learned attacks: networks that read images out of updates, and their training."""
