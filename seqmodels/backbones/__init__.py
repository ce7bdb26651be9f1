"""Backbones: ids in, hidden states out. The contract is `base.py`; read `stack.py` next."""
