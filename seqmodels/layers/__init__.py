"""Sequence layers, one a file: x_BLD and a state in, the same out. The contract is `base.py`; then read `mamba.py`."""
