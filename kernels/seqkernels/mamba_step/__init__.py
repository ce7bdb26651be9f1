"""Decode step of a Mamba block: `reference.py` defines it, `op.py` is the public function, `spec.py` feeds tests."""
