"""Marks of parameters."""

import pytest


def once(*values):
    """A parameter's values for JAX alone: others reach the code of the other backends."""
    return pytest.param(*values, marks=pytest.mark.once)
