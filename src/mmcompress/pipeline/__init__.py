"""Stages in order: recipes, reuse and resume, and single stages."""
