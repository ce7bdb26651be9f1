"""Published checkpoints to run folders and back, every weight accounted for. `convert.py` is the way in.

A layout (`state_spaces.py`, `hugging_face.py`, `caduceus.py`) says how somebody else's config.json describes a model
and what its tensors are called there; one table of names serves both directions. `seqmodels convert` is the command.
"""
