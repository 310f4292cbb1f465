"""Gives kernels threads that steal work, and memory that is lent and reused."""
