"""Mamba-2's recurrence: `reference.py` defines it, `op.py` is the public function, `README.md` has the maths."""
