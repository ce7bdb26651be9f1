"""Are likelihoods made step by step those of the whole sequence? 16,000 samples, two models, fp32 and bf16.

    python experiments/audio/step_equality.py [--csv FILE] [--seconds 40] [--smoke] [--run RUN]

`generate` draws samples one by one (on a GPU each step is a CUDA graph) and notes log p of each. The same ids then go
through the model at once, and in pieces of 1,000; the differences are rounding. Weights are fresh, under a head of its
own table (with the embedding's table, a fresh stack is certain of the symbol it has just read), the logits scaled to a
standard deviation of 3, so that the distributions are as sharp as a trained model's; `--run` adds a trained model as it
is. Beside them, what bf16 itself changes: the same ids under fp32 weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from seqkernels.bench import append_csv, environment

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository: `python experiments/...` puts only this folder on the path

from experiments.audio.generation_speed import MODELS, START_ID, model_of  # noqa: E402
from seqmodels.heads.next_token import NextTokenHead  # noqa: E402
from seqmodels.inference.generate import generate  # noqa: E402
from seqmodels.inference.graph import decoding_copy  # noqa: E402
from seqmodels.inference.likelihood import token_log_likelihood  # noqa: E402
from seqmodels.inference.sampling import Sampling  # noqa: E402
from seqmodels.model import SequenceModel  # noqa: E402

RESULTS = HERE.parent / "results" / "generation_equality.csv"
STEPS, PIECE, LOGIT_STD = 16_000, 1000, 3.0


@torch.no_grad()
def sharpened(fresh: SequenceModel) -> SequenceModel:
    """Its backbone under a head of its own, and a last norm that gives the logits a deviation of `LOGIT_STD`."""
    head = NextTokenHead(d_model=fresh.backbone.d_model, vocab_size=fresh.backbone.vocab_size, tied=False)
    model = SequenceModel(fresh.backbone, head.to(fresh.backbone.embedding.weight.device)).eval()
    device = model.backbone.embedding.weight.device
    ids_1L = torch.randint(0, model.backbone.vocab_size, (1, 512), generator=torch.Generator().manual_seed(0))
    logits_1LV, _ = model(ids_1L.to(device))
    last_norm: Any = model.backbone.norm_f
    last_norm.weight *= LOGIT_STD / logits_1LV.float().std()
    return model


def compared(model: SequenceModel, exact: SequenceModel, steps: int, piece: int, start_id: int) -> dict[str, Any]:
    """Generates, reads again, and says how far apart the likelihoods are.

    Args:
        model: in the precision in question.
        exact: the same model in fp32.
        steps: samples to draw.
        piece: length of the pieces of the third reading.
        start_id: what stands before the first.
    """
    begin = time.perf_counter()
    made = generate(model, steps, start_id=start_id, sampling=Sampling(seed=3))
    stepped_L = made.log_likelihood_BL[0].double()
    seconds = time.perf_counter() - begin

    def read(reader: SequenceModel, chunk_len: int | None) -> torch.Tensor:
        found_BL, _ = token_log_likelihood(reader, made.ids_BL, start_id=start_id, chunk_len=chunk_len)
        return found_BL[0].double()

    whole_L, pieces_L, exact_L = read(model, None), read(model, piece), read(exact, None)
    off_L = (stepped_L - whole_L).abs()
    return {
        "steps": steps,
        "total_nats": f"{float(stepped_L.sum()):.4f}",
        "total_off_nats": f"{float((stepped_L - whole_L).sum()):.3e}",
        "largest_off_nats": f"{float(off_L.max()):.3e}",
        "mean_off_nats": f"{float(off_L.mean()):.3e}",
        "off_bits_per_sample": f"{abs(float((stepped_L - whole_L).mean())) / 0.6931471805599453:.3e}",
        "pieces_largest_off_nats": f"{float((pieces_L - whole_L).abs().max()):.3e}",
        "fp32_total_off_nats": f"{float((whole_L - exact_L).sum()):.3e}",
        "fp32_largest_off_nats": f"{float((whole_L - exact_L).abs().max()):.3e}",
        "samples_per_s": f"{steps / seconds:.0f}",
    }


def models(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, SequenceModel, int]]:
    """Name, model in fp32, and the id that stands before the first sample."""
    if options.run:
        from seqmodels.inference import load

        loaded = load(str(options.run), str(device))
        yield f"trained: {Path(options.run).name}", loaded.model.eval(), loaded.tokenizer.start_id
    for name in MODELS:
        yield name, sharpened(model_of(name, device, options.smoke)), START_ID


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS, help="file to append rows to")
    parser.add_argument("--seconds", type=float, default=40, help="begin no measurement after so many seconds")
    parser.add_argument("--commit", default=None, help="what to write where there is no git")
    parser.add_argument("--run", type=Path, default=None, help="a trained run to compare too")
    parser.add_argument("--smoke", action="store_true", help="tiny models, a few steps")
    options = parser.parse_args(words)
    deadline = time.perf_counter() + options.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, exact, start_id in models(options, device):
        for dtype in ("fp32", "bf16"):
            if time.perf_counter() > deadline:
                print(f"left out for time: {name} {dtype}", flush=True)
                continue
            model = exact if dtype == "fp32" else decoding_copy(exact, torch.bfloat16)
            steps, piece = (40, 7) if options.smoke else (STEPS, PIECE)
            row = {"model": name, "dtype": dtype, **compared(model, exact, steps, piece, start_id)}
            row |= environment(device)
            row["commit"] = options.commit or row["commit"]
            append_csv(options.csv, [row])
            print({key: row[key] for key in list(row)[:12]}, flush=True)


if __name__ == "__main__":
    main()
