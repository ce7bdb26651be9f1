"""Gated RMS norm of Mamba-2: `reference.py` defines it, `op.py` is the public function, `spec.py` feeds tests."""
