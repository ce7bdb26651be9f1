"""Selective scan: `reference.py` defines it, `op.py` is the public function, `README.md` holds the maths."""
