"""Heads that know no domain: hidden states to logits, logits and a batch to sums of losses. Read `base.py` first."""
