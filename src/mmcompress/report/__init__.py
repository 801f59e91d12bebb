"""Figures -> page: one document of all that was measured, and its views."""
