"""What a long job leaves behind when it is killed, so that the next one goes on where it stopped.

A folder beside the output: `position.json` says how far the job is and which job it is; tensors that it carries lie
beside it. Both are put in place by one rename, so a kill at any moment leaves the position of the last whole step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from domains.dna.fasta_scan import written_whole


class ResumeFolder:
    """The folder of one job.

    Args:
        folder: made by the first `save`.
        identity: settings and inputs that must be the same for a job to go on, as plain data.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, json.loads(json.dumps(identity))

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """(position, tensors) of the job that was stopped; None if there was none.

        Raises:
            ValueError: it was a job with other settings or inputs; says which.
        """
        try:
            noted = json.loads((self.folder / "position.json").read_text())
        except FileNotFoundError:
            return None
        if noted["identity"] != self.identity:
            differ = [name for name in self.identity if noted["identity"].get(name) != self.identity[name]]
            raise ValueError(
                f"{self.folder} holds a run with other settings ({', '.join(differ)}); delete it to start again, or "
                "name another output"
            )
        tensors: dict[str, Tensor] = {}
        if noted["tensors"]:
            from safetensors.torch import load_file

            tensors = load_file(self.folder / noted["tensors"])
        return noted["position"], tensors

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Notes that everything up to `position` is done; it says "step", a number that grows, among other things."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = ""
        if tensors:
            from safetensors.torch import save_file

            name = f"carried-{position['step']}.safetensors"
            with written_whole(self.folder / name) as partial:
                save_file(dict(tensors), partial)
        noted = {"identity": self.identity, "position": dict(position), "tensors": name}
        with written_whole(self.folder / "position.json") as partial:
            partial.write_text(json.dumps(noted))
        for old in self.folder.glob("carried-*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)

    def done(self) -> None:
        """The output is complete: the folder goes."""
        shutil.rmtree(self.folder, ignore_errors=True)
