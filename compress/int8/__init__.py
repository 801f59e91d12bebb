"""Integers: ranges, rounding, what stays in float, and training where that is not enough."""
