"""Smaller towers: heads, MLP units, blocks, width, 2:4 sparsity."""
