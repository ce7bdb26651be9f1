"""Causal convolution as long as the sequence: `reference.py` defines it, `op.py` is public, `fft.py` runs it."""
