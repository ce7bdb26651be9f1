"""Decode step of a whole Mamba block: `reference.py` defines it, `op.py` is public, `spec.py` feeds tests."""
