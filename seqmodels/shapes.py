"""The legend of dimension letters: the one place that says what `x_BLD` means.

Names carry their shape as a suffix (`x_BLD`, `state_BEN`), annotations use the same letters
(`Float[Tensor, "B L D"]`), and prose uses them too. Model tensors are channel-last everywhere.

| letter | dimension | letter | dimension |
|---|---|---|---|
| B | batch | N | state size |
| S | raw units of a file (bases, samples) | R | rank of the step-size projection (dt) |
| L | model positions | W | convolution width |
| D | model width | Q | chunk length |
| E | inner width (= H * P) | M | chunks |
| H | heads | V | vocabulary |
| P | head width | O | classes or tracks |
| G | groups of B and C | C | audio channels |
"""

LEGEND: dict[str, str] = {
    "B": "batch",
    "S": "raw units of a file (bases, samples)",
    "L": "model positions",
    "D": "model width",
    "E": "inner width (= H * P)",
    "H": "heads",
    "P": "head width",
    "G": "groups of B and C",
    "N": "state size",
    "R": "rank of the step-size projection",
    "W": "convolution width",
    "Q": "chunk length",
    "M": "chunks",
    "V": "vocabulary",
    "O": "classes or tracks",
    "C": "audio channels",
}
