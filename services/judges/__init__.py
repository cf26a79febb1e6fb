"""Judges hold an agent's output against acceptance criteria, one small module each.

Nothing is imported here: the sandbox's child loads this package at every start.
"""
