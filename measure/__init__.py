"""Answers -> figures: what delivered files cost, how far they moved, what that is worth. Torch in a verdict only."""
