"""RMS norm with residual add: `reference.py` defines it, `op.py` is the public function, `spec.py` feeds tests."""
