"""What the model makes while it is trained: samples now and then, as files, in TensorBoard and in the run's report.

    seqmodels train ... callbacks=samples callbacks.samples.every_steps=500 callbacks.samples.seconds=2

After every so many steps, and after the last: `<run>/samples/step-00000500_0.wav`, … (FASTA for DNA) with spectrograms
beside them and a row each in `samples.tsv`; sound and spectrograms in TensorBoard; and `<run>/report.html`, one page
with the curves so far and the newest samples. The same seed each time, so that what changes is the model. Training is
not touched: a run with samples has the same losses as one without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from seqmodels.training.loggers import RunLog
from seqmodels.training.run_report import write_report

DEFAULT_LENGTH = 1000


class SampleLog(L.Callback):
    """Makes samples during training.

    Args:
        every_steps: after every so many optimizer steps, and after the last.
        num_samples: sequences each time.
        length: symbols of each; None for 1,000, or what `seconds` says.
        seconds: of sound, in place of `length`; rounded to whole samples.
        temperature: see `seqmodels.inference.Sampling`, also for the next three.
        top_k: the likeliest symbols to draw among.
        top_p: the probability to draw among.
        seed: of the draws.

    Raises:
        ValueError: a number below 1, or both length and seconds.
    """

    def __init__(
        self,
        every_steps: int = 1000,
        num_samples: int = 2,
        length: int | None = None,
        seconds: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("every_steps", every_steps), ("num_samples", num_samples), ("length", length)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"callbacks.samples.{name}={value!r} must be a whole number from 1 on")
        if length is not None and seconds is not None:
            raise ValueError(f"callbacks.samples: length={length} and seconds={seconds}: give one of them")
        from seqmodels.inference.sampling import Sampling

        self.every_steps, self.num_samples, self.length, self.seconds = every_steps, num_samples, length, seconds
        self._drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        Sampling(**self._drawing)  # its mistakes are seen before training begins

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sees to it that there is something to make.

        Raises:
            ValueError: the model does not predict next symbols, or `seconds` of something that is no sound.
        """
        model: Any = pl_module.model
        if model.head.objective != "next_token" or not model.backbone.is_causal:
            raise ValueError(
                f"callbacks=samples: {type(model.head).__name__} makes no sequences; it is for models of next symbols"
            )
        self._symbols(_tokenizer(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Samples where a step has ended and it is time; the rate of training leaves the pause out."""
        step = trainer.global_step
        if trainer.datamodule.position % trainer.accumulate_grad_batches:  # type: ignore[attr-defined]
            return  # in the middle of an accumulated step
        if not trainer.is_global_zero or (step % self.every_steps and step != trainer.max_steps):
            return
        meter: Any = pl_module.meter
        paused = meter.pause()
        files = self._make(trainer, pl_module, step)
        self._log(trainer, files, step)
        write_report(Path(trainer.default_root_dir))
        meter.go_on(paused)

    def _make(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> list[str]:
        """The files, the table last."""
        from seqmodels.inference.generate import read_prefix
        from seqmodels.inference.samples import SamplesJob, make_samples
        from seqmodels.inference.sampling import Sampling

        model: Any = pl_module.model
        tokenizer = _tokenizer(trainer)
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(exist_ok=True)
        allowed_ids = getattr(tokenizer, "drawn_ids", None)
        job = SamplesJob(
            str(folder / f"step-{step:08d}{tokenizer.file_suffix}"),
            self.num_samples,
            self._symbols(tokenizer),
            sampling=Sampling(**self._drawing, allowed_ids=allowed_ids),
            facts={"step": str(step)},
        )
        prefix = read_prefix(model, start_id=tokenizer.start_id, class_ids=0 if _is_told(model) else None)
        _, files = make_samples(model, tokenizer, prefix, job, picture=True)
        return files

    def _symbols(self, tokenizer: Any) -> int:
        if self.seconds is None:
            return self.length or DEFAULT_LENGTH
        rate_hz = getattr(tokenizer, "sample_rate_hz", None)
        if rate_hz is None:
            raise ValueError(
                f"callbacks.samples.seconds={self.seconds}: this model makes {tokenizer.unit}s; take length"
            )
        if not self.seconds * rate_hz >= 1:
            raise ValueError(f"callbacks.samples.seconds={self.seconds}: less than one sample at {rate_hz} Hz")
        return round(self.seconds * rate_hz)

    def _log(self, trainer: L.Trainer, files: list[str], step: int) -> None:
        suffix = _tokenizer(trainer).file_suffix
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                for number, file in enumerate(file for file in files if file.endswith(suffix)):
                    logger.log_sample(f"samples/{number}", Path(file), step)


def _tokenizer(trainer: L.Trainer) -> Any:
    return trainer.datamodule.corpus.tokenizer  # type: ignore[attr-defined]


def _is_told(model: Any) -> bool:
    """Whether it makes sequences of a class; then they are of the first."""
    from seqmodels.backbones.class_conditioned import ClassConditioned

    return isinstance(model.backbone, ClassConditioned)
