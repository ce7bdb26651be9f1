"""A process that trains in forked children, which a test can kill. Not a test; started by test_resume.py.

Reads one JSON job a line and answers "started <pid>"; at "wait", waits for the child and answers with its status.
Forking saves importing Lightning anew for every try. This process itself never computes anything, so that no thread
of torch exists when it forks.
"""

import hashlib
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path


def main() -> None:
    warnings.simplefilter("error")
    import lightning as L
    import torch

    import seqmodels.training.loggers
    import seqmodels.training.rhythm  # noqa: F401 - imported here, so that children need not
    from seqmodels.training import train
    from seqmodels.training.tiny import TinyCorpus, tiny_model, tiny_recipe

    torch.set_num_threads(1)

    class Trace(L.Callback):
        """One line a batch: its number, a hash of its ids, the loss, and what the step's dice show."""

        def __init__(self, path: str, pause: float) -> None:
            self.path, self.pause = Path(path), pause

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            digest = hashlib.sha256(batch.input_ids_BL.numpy().tobytes()).hexdigest()
            self.batch = (trainer.datamodule.position, digest, batch.record_ids)

        def on_before_backward(self, trainer, pl_module, loss) -> None:
            # Before anything of this batch can be saved: no step is in a checkpoint and not in the trace.
            with self.path.open("a") as file:
                file.write(json.dumps([*self.batch, float(loss.detach()), float(torch.rand(()))]) + "\n")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            time.sleep(self.pause)

    def work(job: dict) -> None:
        sys.stdout = sys.stderr = open(job["run_dir"] + ".log", "a", buffering=1)  # noqa: SIM115
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        recipe = tiny_recipe(**job["recipe"])
        corpus = TinyCorpus(ragged=True)
        trace = Trace(job["run_dir"] + ".trace", job["pause"])
        result = train(corpus, tiny_model(), recipe, run_dir=job["run_dir"], resume=job["resume"], callbacks=[trace])
        print("ended at step", result.step, "stopped by", result.stopped_by)

    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(job)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        print("started", pid, flush=True)
        sys.stdin.readline()
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":  # workers import this file
    main()
