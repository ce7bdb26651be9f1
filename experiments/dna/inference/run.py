"""What can be done with a trained DNA model on files of real size: `score`, `embed` and `mutagenesis` on one GPU.

    python experiments/dna/inference/data.py --vcf human_chimpanzee_seg08.vcf.gz
    python experiments/dna/inference/run.py --run build/dna_run --out OUT      one GPU, about four minutes
    python experiments/dna/inference/run.py --smoke                            tiny, on a CPU: does it run?

Every figure comes from the command of a user, called in this process (the killed run: in one of its own). Rows go to
OUT/dna_inference.csv as they are measured; scored tables beside it are what report.py draws. Parts, in order:

score        all differences of the VCF, windows of 1,024 bases, both strands
precision    the same scores in TF32 and bf16
length       log-likelihood of 1, 8 and 63 Mb of chromosome 20: time, memory of CPU and GPU
one_pass     1 Mb embedded in pieces against one forward pass
kill         `kill -9` in the middle and again: byte for byte the file of a run that was left alone?
every_base   every other base at places that differ: is the observed one likelier?
mutagenesis  every substitution of a region, prefix states reused, against reading every window from its start
embed        hidden states of 8 Mb written out; the mean of every 10 kb
windows      every other base again, in windows of 8,192 and 65,536 bases
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import gzip
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # `python experiments/...` puts only this folder on the path

from seqkernels.bench import append_csv, environment  # noqa: E402

from experiments.dna.inference import data as study_data  # noqa: E402

CSV_NAME = "dna_inference.csv"
WINDOWS = (1024, 8192, 65536)
COLUMNS = [
    "part", "setting", "variants", "bases", "window_bases", "precision", "seconds", "per_second", "value", "meaning",
    "baseline", "baseline_value", "cpu_mib_before", "cpu_mib", "gpu_mib", "note", "model", "parameters", "gpu",
    "driver", "torch", "triton", "commit", "date",
]  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the second set is for a CPU and seconds."""

    batch: int = 256  # windows of 1,024 bases
    window: int = 1024
    windows: tuple[int, ...] = WINDOWS
    warm_up: int = 512  # records
    probe: int = 2048
    killed: int = 4_000
    killed_batch: int = 64
    lengths: tuple[int, ...] = (1_000_000, 8_000_000, 0)  # bases of the chromosome; 0 is all of it
    piece: int = 65_536
    start: int = 40_000_000  # of what is cut out of the chromosome: no long run of N follows
    bin: int = 10_000
    every_base_s: float = 25.0  # of work
    windows_s: tuple[float, ...] = (0.0, 25.0, 45.0)  # of work at each of `windows`
    most: int = 36_127


TINY = Sizes(
    batch=8, window=64, windows=(64, 128), warm_up=8, probe=16, killed=80, killed_batch=1, lengths=(3000, 9000),
    piece=512, start=50_000, bin=500, every_base_s=1.0, windows_s=(0.0, 1.0), most=24,
)  # fmt: skip


@dataclass
class Bench:
    """The study's settings, and what it has found out on the way."""

    run: Path
    inputs: study_data.Inputs
    out: Path
    work: Path
    sizes: Sizes
    device: torch.device
    deadline: float
    about: Row
    rates: dict[str, float] = field(default_factory=dict)  # precision -> bases read in a second

    def command(self, *words: str) -> Row:
        """`seqmodels <words>` here: seconds, and memory at its highest."""
        from seqmodels.cli import main

        gc.collect()
        before = resident_mib()
        forget_peaks(self.device)
        begin = time.perf_counter()
        print("seqmodels", *words, flush=True)
        if main([*words, f"device={self.device.type}"]):
            raise RuntimeError("the command failed; its message stands above")
        seconds = time.perf_counter() - begin
        return {"seconds": round(seconds, 3), "cpu_mib_before": before, **peaks(self.device)}

    def score(self, vcf: Path, name: str, *words: str, window: int, precision: str = "fp32", batch: int = 0) -> Row:
        batch = batch or max(1, self.sizes.batch * self.sizes.window // window)
        return self.command(
            "score", f"run={self.run}", f"vcf={vcf}", f"fasta={self.inputs.genome}", f"output={self.work / name}.vcf",
            f"table={self.work / name}.tsv", f"scorer.window_bases={window}", f"scorer.batch_size={batch}",
            f"scorer.precision={precision}", *words,
        )  # fmt: skip

    def keep(self, name: str) -> None:
        """A scored table goes into the output folder, packed."""
        packed = gzip.compress((self.work / f"{name}.tsv").read_bytes(), mtime=0)
        (self.out / f"{name}.tsv.gz").write_bytes(packed)


# ---------------------------------------------------------------------------------------------------------- memory


def resident_mib() -> int:
    return status_mib("VmRSS")


def status_mib(key: str) -> int:
    """A line of /proc/self/status, in MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith(f"{key}:"))


def forget_peaks(device: torch.device) -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest resident size is counted anew
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks(device: torch.device) -> Row:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    gpu = torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else ""
    return {"cpu_mib": min(status_mib("VmHWM"), own), "gpu_mib": gpu}


# ----------------------------------------------------------------------------------------------------------- score


def score(bench: Bench) -> Iterator[Row]:
    """The whole VCF; less of it where the time would not do."""
    sizes, first = bench.sizes, bench.work / "first.vcf"
    study_data.head_of(bench.inputs.observed, first, sizes.warm_up)
    warm = bench.score(first, "warm_up", window=sizes.window)
    yield {"setting": "first call, kernels compiled", "variants": sizes.warm_up, "window_bases": sizes.window, **warm}
    records = study_data.head_of(bench.inputs.observed, first, sizes.probe)
    probe = bench.score(first, "probe", window=sizes.window, batch=sizes.batch)
    bases = 4 * sizes.window * records
    bench.rates["fp32"] = bases / probe["seconds"]
    whole = bench.work / "observed_in.vcf"
    fit = int(0.5 * (bench.deadline - time.perf_counter()) * bench.rates["fp32"] / (4 * sizes.window))
    records = study_data.head_of(bench.inputs.observed, whole, fit)
    measured = bench.score(whole, "observed", window=sizes.window)
    bench.keep("observed")
    bases = 4 * sizes.window * records
    bench.rates["fp32"] = bases / measured["seconds"]
    yield {
        "setting": "observed differences, both strands", "variants": records, "bases": bases, "precision": "fp32",
        "window_bases": sizes.window, "per_second": round(records / measured["seconds"], 1), **measured,
    }  # fmt: skip


def precision(bench: Bench) -> Iterator[Row]:
    """Time and scores of some variants in each precision."""
    sizes = bench.sizes
    found: dict[str, np.ndarray] = {}
    for name in ("fp32", "tf32", "bf16") if bench.device.type == "cuda" else ("fp32", "bf16"):
        measured = bench.score(bench.work / "first.vcf", f"in_{name}", window=sizes.window, precision=name)
        table = read_table(bench.work / f"in_{name}.tsv")
        found[name] = np.array([float(row["score"]) for row in table if row["score"]])
        bench.rates[name] = 4 * sizes.window * len(table) / measured["seconds"]
        difference = found[name] - found["fp32"]
        yield {
            "setting": f"{len(table)} variants", "variants": len(table), "precision": name,
            "window_bases": sizes.window, "bases": 4 * sizes.window * len(table),
            "per_second": round(len(table) / measured["seconds"], 1),
            "value": f"{np.abs(difference).max():.3g}", "meaning": "largest difference of a score to fp32, nats",
            "baseline": "sd of a score", "baseline_value": f"{found['fp32'].std():.4g}", **measured,
            "note": f"sd of the difference {difference.std():.3g}",
        }  # fmt: skip


def kill(bench: Bench) -> Iterator[Row]:
    """A run that is killed in the middle, and goes on, against one that is not."""
    sizes, vcf = bench.sizes, bench.work / "killed_in.vcf"
    records = study_data.head_of(bench.inputs.observed, vcf, sizes.killed)
    batch = sizes.killed_batch
    whole = bench.score(vcf, "whole", window=sizes.window, batch=batch)
    words = [
        "score", f"run={bench.run}", f"vcf={vcf}", f"fasta={bench.inputs.genome}", f"output={bench.work / 'cut.vcf'}",
        f"table={bench.work / 'cut.tsv'}", f"scorer.window_bases={sizes.window}", f"scorer.batch_size={batch}",
        f"device={bench.device.type}",
    ]  # fmt: skip
    done = kill_in_the_middle(words, bench.work / ".cut.vcf.resume" / "position.json", records)
    begin = time.perf_counter()
    subprocess.run(child(words), check=True, timeout=200, stdout=subprocess.DEVNULL)
    same = all((bench.work / f"whole.{end}").read_bytes() == (bench.work / f"cut.{end}").read_bytes()
               for end in ("vcf", "tsv"))  # fmt: skip
    yield {
        "setting": f"kill -9 after {done:,} of {records:,} records, then again", "variants": records,
        "window_bases": sizes.window, "seconds": round(time.perf_counter() - begin, 3), "value": int(same),
        "meaning": "VCF and table are byte for byte those of a run left alone", "baseline": "seconds of that run",
        "baseline_value": whole["seconds"], "note": "the second run: a process of its own, from start to end",
    }  # fmt: skip


def child(words: list[str]) -> list[str]:
    return [sys.executable, "-c", "import sys; from seqmodels.cli import main; sys.exit(main())", *words]


def kill_in_the_middle(words: list[str], position: Path, records: int) -> int:
    """Starts the command and kills it once a third is noted as done; returns the records that were."""
    process = subprocess.Popen(child(words), stdout=subprocess.DEVNULL)
    end = time.perf_counter() + 120
    while process.poll() is None and time.perf_counter() < end:
        with contextlib.suppress(FileNotFoundError):
            if 3 * json.loads(position.read_text())["position"]["step"] >= records:
                break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError("the run was over before it could be killed")
    return int(json.loads(position.read_text())["position"]["step"])


# ----------------------------------------------------------------------------------------------------------- embed


def piece_of_chromosome(bench: Bench, bases: int) -> tuple[Path, int]:
    """A FASTA with so many bases of the chromosome (0: the file itself), and how many there are."""
    from domains.dna.fasta import Genome

    genome = Genome(str(bench.inputs.chromosome))
    ((name, length),) = genome.lengths.items()
    if not bases:
        return bench.inputs.chromosome, length
    path, start = bench.work / f"{bases}.fa", min(bench.sizes.start, length - bases)
    letters = bytes(genome.fetch(name, start, start + bases)).decode()
    path.write_text(f">{name}\n{letters}\n")
    Genome(str(path))  # checked and indexed before anything is timed
    return path, bases


def length(bench: Bench) -> Iterator[Row]:
    """Log-likelihoods of ever more bases: time grows with them, memory does not."""
    for wanted in bench.sizes.lengths:
        fasta, bases = piece_of_chromosome(bench, wanted)
        folder = bench.work / f"likelihood_{bases}"
        if wanted == 0 and not fits(bench, bases):
            print(f"left out for time: {bases:,} bases")
            continue
        measured = embed(bench, fasta, folder, "embedder.keep=log_likelihood")
        bits = per_bin(folder, fasta, 10 * bench.sizes.bin)
        if wanted == bench.sizes.lengths[-1]:
            np.savetxt(bench.out / "bits_per_100kb.csv", bits, delimiter=",", fmt="%.5g",
                       header="start,bases,bits_per_base", comments="")  # fmt: skip
        total = (bits[:, 1] * bits[:, 2]).sum() / bits[:, 1].sum()
        yield {
            "setting": "log-likelihood of every base", "bases": bases, "precision": "fp32", "value": f"{total:.5f}",
            "per_second": round(bases / measured["seconds"]),
            "meaning": "bits a base, N aside", **measured,
        }  # fmt: skip


def embed(bench: Bench, fasta: Path, output: Path, *words: str) -> Row:
    return bench.command(
        "embed", f"run={bench.run}", f"fasta={fasta}", f"output={output}", f"embedder.piece_bases={bench.sizes.piece}",
        f"embedder.part_bases={16 * bench.sizes.piece}", *words,
    )  # fmt: skip


def fits(bench: Bench, bases: int) -> bool:
    return bases / bench.rates.get("fp32", 1e6) < bench.deadline - time.perf_counter()


def parts_of(folder: Path) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """(first position, tensors) of every part of an embedding, in order."""
    from safetensors import safe_open

    for path in sorted(folder.glob("part-*.safetensors")):
        with safe_open(path, "pt") as file:
            yield int(file.metadata()["start"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict


def per_bin(folder: Path, fasta: Path, size: int) -> np.ndarray:
    """(start, bases, bits a base) of every bin of a record; N is left out."""
    from domains.dna.fasta import Genome

    genome = Genome(str(fasta))
    (name,) = genome.lengths
    nats = np.concatenate([tensors["log_likelihood"].double().numpy() for _, tensors in parts_of(folder)])
    is_base = np.isin(genome.fetch(name), np.frombuffer(b"ACGTacgt", dtype=np.uint8))
    rows = []
    for start in range(0, len(nats), size):
        here = slice(start, start + size)
        if is_base[here].any():
            rows.append((start, is_base[here].sum(), -nats[here][is_base[here]].mean() / np.log(2)))
    return np.array(rows)


def one_pass(bench: Bench) -> Iterator[Row]:
    """The first length in pieces, through the command, against one forward pass over all of it."""
    from seqmodels.inference import load

    sizes = bench.sizes
    fasta, bases = piece_of_chromosome(bench, sizes.lengths[0])
    loaded = load(bench.run, bench.device)
    hidden_LD, nats_L = whole_pass(loaded, fasta)
    for piece in (sizes.piece, sizes.piece // 16):
        folder = bench.work / f"pieces_{piece}"
        measured = embed(bench, fasta, folder, "embedder.half=false", f"embedder.piece_bases={piece}",
                         f"embedder.part_bases={16 * piece}")  # fmt: skip
        worst, worst_nats, late = 0.0, 0.0, 0.0
        for start, tensors in parts_of(folder):
            here = slice(start, start + len(tensors["hidden"]))
            apart = (tensors["hidden"] - hidden_LD[here]).abs().max().item()
            worst, late = max(worst, apart), apart
            worst_nats = max(worst_nats, (tensors["log_likelihood"] - nats_L[here]).abs().max().item())
        for value, meaning, baseline, scale in (
            (worst, "largest difference of a hidden value, fp32", "sd of a hidden value", hidden_LD.std().item()),
            (late, "the same in the last part", "sd of a hidden value", hidden_LD.std().item()),
            (worst_nats, "largest difference of a log-likelihood, nats", "sd of one", nats_L.std().item()),
        ):
            yield {
                "setting": f"pieces of {piece:,} against one pass", "bases": bases, "precision": "fp32",
                "value": f"{value:.3g}", "meaning": meaning, "baseline": baseline, "baseline_value": f"{scale:.4g}",
                **measured,
            }  # fmt: skip


@torch.no_grad()
def whole_pass(loaded: Any, fasta: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and log-likelihoods of a record in a single forward pass, on the CPU."""
    from domains.dna.fasta import Genome

    genome = Genome(str(fasta))
    (name,) = genome.lengths
    ids = torch.from_numpy(loaded.tokenizer.encode(genome.fetch(name)).astype(np.int64))
    read = torch.cat([torch.tensor([loaded.tokenizer.start_id]), ids]).to(loaded.model.backbone.embedding.weight.device)
    hidden_1TD, _ = loaded.model.backbone(read[None])
    logits_LV = loaded.model.head.vocabulary_logits(loaded.model.head(hidden_1TD[:, :-1])[0]).float()
    nats_L = logits_LV.log_softmax(-1).gather(1, read[1:, None])[:, 0]
    return hidden_1TD[0, 1:].float().cpu(), nats_L.cpu()


def hidden_states(bench: Bench) -> Iterator[Row]:
    """What writing costs: hidden states of every base, and the mean of every bin, of the second length."""
    sizes = bench.sizes
    fasta, bases = piece_of_chromosome(bench, sizes.lengths[1])
    folder = bench.work / "hidden"
    measured = embed(bench, fasta, folder)
    written = sum(path.stat().st_size for path in folder.iterdir())
    shutil.rmtree(folder)
    yield {
        "setting": "hidden states (fp16) and log-likelihood of every base", "bases": bases, "precision": "fp32",
        "per_second": round(bases / measured["seconds"]), "value": round(written / 2**20), "meaning": "MiB written",
        **measured,
    }  # fmt: skip
    bed, name = bench.work / "bins.bed", fasta.read_text()[1:].split("\n", 1)[0]
    bed.write_text("".join(f"{name}\t{start}\t{start + sizes.bin}\n" for start in range(0, bases, sizes.bin)))
    measured = embed(bench, fasta, bench.work / "bins.parquet", f"regions={bed}")
    yield {
        "setting": f"mean of every {sizes.bin:,} bases", "bases": bases, "precision": "fp32",
        "per_second": round(bases / measured["seconds"]), "value": bases // sizes.bin, "meaning": "regions", **measured,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------- made-up alleles


def every_base(bench: Bench) -> Iterator[Row]:
    yield from scored_bases(bench, bench.sizes.window, "fp32", bench.sizes.every_base_s, "every_base")


def windows(bench: Bench) -> Iterator[Row]:
    """The same places in longer windows, where a GPU's faster products are exact enough."""
    precision = "tf32" if bench.device.type == "cuda" else "fp32"
    for window, seconds in list(zip(bench.sizes.windows, bench.sizes.windows_s))[1:]:
        yield from scored_bases(bench, window, precision, seconds, f"every_base_{window}")


def scored_bases(bench: Bench, window: int, precision: str, seconds: float, name: str) -> Iterator[Row]:
    """REF and three alternatives at as many places as the seconds allow."""
    left = min(seconds, bench.deadline - time.perf_counter())
    records = min(bench.sizes.most, int(left * bench.rates.get(precision, 1e6) / (8 * window)))
    if records < 2:
        print(f"left out for time: windows of {window:,}")
        return
    vcf = bench.work / f"{name}_in.vcf"
    records = study_data.head_of(bench.inputs.every_base, vcf, records)
    measured = bench.score(vcf, name, window=window, precision=precision)
    bench.keep(name)
    yield {
        "setting": "three alternatives at every place, both strands", "variants": 3 * records, "precision": precision,
        "bases": 8 * window * records, "window_bases": window,
        "per_second": round(3 * records / measured["seconds"], 1), **measured,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- mutagenesis


def mutagenesis(bench: Bench) -> Iterator[Row]:
    """The command with its figure; then its inner part alone, against every window read from its start."""
    words = ["mutagenesis", f"run={bench.run}", f"fasta={bench.inputs.genome}"]
    words.append(f"scorer.window_bases={2 * bench.sizes.window}")
    bench.command(*words, f"region={bench.inputs.logo_region}", f"output={bench.work / 'logo.tsv'}",
                  f"figure={bench.out / 'mutagenesis_logo.png'}")  # fmt: skip
    table = bench.out / "mutagenesis.tsv"
    measured = bench.command(*words, f"region={bench.inputs.region}", f"output={table}")
    positions = len(read_table(table))
    about: Row = {"setting": f"{positions} positions of {bench.inputs.region}", "precision": "fp32"}
    about |= {"variants": 3 * positions, "window_bases": 2 * bench.sizes.window}
    yield {**about, "per_second": round(3 * positions / measured["seconds"], 1), **measured, "note": "the command"}
    yield from against_whole_windows(bench, about)


def against_whole_windows(bench: Bench, about: Row) -> Iterator[Row]:
    from domains.dna.fasta import Genome
    from domains.dna.mutagenesis import Mutagenesis, parse_region
    from seqmodels.inference import load

    loaded, genome = load(bench.run, bench.device), Genome(str(bench.inputs.genome))
    interval = parse_region(bench.inputs.region, genome)
    for window in (about["window_bases"], 4 * about["window_bases"]):
        begin = max(0, (interval.start + interval.end - window) // 2)
        ids = loaded.tokenizer.encode(genome.fetch(interval.contig, begin, begin + window))
        first, last = interval.start - begin, interval.end - begin
        for block in (16, 64):
            scorer = Mutagenesis(window_bases=window, block_bases=block, batch_size=1 + 3 * block)
            scorer.scores(loaded.model, ids, first, first + block)  # warm
            reused, seconds = timed(bench, lambda: scorer.scores(loaded.model, ids, first, last))  # noqa: B023
            if block == 16:
                whole, whole_s = timed(bench, lambda: whole_windows(loaded, ids, first, last))  # noqa: B023
            apart = np.nanmax(np.abs(reused - whole))
            yield {
                **about, "window_bases": window, "bases": "", "seconds": round(seconds, 3),
                "per_second": round(about["variants"] / seconds, 1), "value": round(whole_s / seconds, 3),
                "meaning": f"times faster, states reused every {block} bases",
                "baseline": "seconds, every window from its start",
                "baseline_value": round(whole_s, 3), "note": f"largest difference of a score {apart:.2g} nats",
            }  # fmt: skip


def timed(bench: Bench, work: Any) -> tuple[Any, float]:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin  # the result lies on the host: the device is done


def whole_windows(loaded: Any, ids: np.ndarray, first: int, last: int) -> np.ndarray:
    """Scores as `Mutagenesis.scores` gives them, each mutated window read as a whole."""
    from domains.dna.tokenizer import BASE_IDS, reverse_complement_ids
    from seqmodels.inference import token_log_likelihood

    def totals(rows_BL: np.ndarray) -> np.ndarray:
        ids_BL = torch.from_numpy(rows_BL.astype(np.int64))
        nats_BL = token_log_likelihood(loaded.model, ids_BL, start_id=loaded.tokenizer.start_id)[0].double()
        counted_BL = torch.isin(ids_BL, torch.tensor(BASE_IDS)).to(nats_BL.device)
        return torch.where(counted_BL, nats_BL, 0.0).sum(1).cpu().numpy()

    changes = [(place, base) for place in range(first, last) for base in BASE_IDS if base != ids[place]]
    scores = np.zeros((last - first, 4))
    for strand in (lambda row: row, reverse_complement_ids):
        reference = totals(strand(ids)[None])[0]
        for begin in range(0, len(changes), 64):
            batch = changes[begin : begin + 64]
            rows = np.repeat(ids[None], len(batch), axis=0)
            for row, (place, base) in zip(rows, batch):
                row[place] = base
            for (place, base), total in zip(batch, totals(np.stack([strand(row) for row in rows]))):
                scores[place - first, BASE_IDS.index(base)] += (total - reference) / 2
    scores[~np.isin(ids[first:last], BASE_IDS)] = np.nan
    return scores


def read_table(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# ------------------------------------------------------------------------------------------------------------- main

PARTS = {
    "score": score, "precision": precision, "length": length, "one_pass": one_pass, "kill": kill,
    "every_base": every_base, "mutagenesis": mutagenesis, "embed": hidden_states, "windows": windows,
}  # fmt: skip


def fresh_run(to: Path) -> Path:
    """A run folder with an untrained tiny model."""
    from domains.dna.tokenizer import DnaTokenizer
    from seqmodels.instantiate import build
    from seqmodels.training.checkpoint import write_checkpoint

    torch.manual_seed(0)
    layer = {"_target_": "seqmodels.layers.mamba.Mamba", "_partial_": True, "d_state": 4}
    backbone = {"_target_": "seqmodels.backbones.stack.Stack", "d_model": 16, "n_layers": 2, "vocab_size": 12}
    backbone["layer"] = layer
    head = {"_target_": "seqmodels.heads.next_token.NextTokenHead", "d_model": 16, "vocab_size": 12}
    spec = {"_target_": "seqmodels.model.SequenceModel", "backbone": backbone, "head": head}
    meta = {"model": spec, "tokenizer": DnaTokenizer().spec(), "class_names": [], "step": 1}
    folder = to / "checkpoints" / "step-00000001"
    write_checkpoint(folder, weights=build(spec).state_dict(), meta=meta, training_state={})
    return to


def bench_of(options: argparse.Namespace, work: Path) -> Bench:
    from seqmodels.inference import load

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.smoke:
        inputs, run = study_data.tiny(work / "data"), options.run
        if run is None or not run.exists():
            run = fresh_run(work / "run")
    else:
        inputs, run = study_data.Inputs(
            genome=options.genome, observed=options.data / study_data.OBSERVED,
            every_base=options.data / study_data.EVERY_BASE, chromosome=options.chromosome,
            region=options.region, logo_region=options.logo_region,
        ), options.run or ROOT / "build" / "dna_run"  # fmt: skip
    model = load(run, "cpu").model
    layers = getattr(model.backbone, "layers", ())
    about = {"model": f"{type(model.backbone).__name__} {model.backbone.d_model} x {len(layers)}"}
    about |= {"parameters": sum(parameter.numel() for parameter in model.parameters()), **environment(device)}
    about["commit"] = options.commit or about["commit"]
    sizes, deadline = TINY if options.smoke else Sizes(), time.perf_counter() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    return Bench(run, inputs, options.out, work, sizes, device, deadline, about)


def measure(bench: Bench, parts: list[str]) -> int:
    """Runs parts and appends their rows; a part that fails is a row too. Returns how many failed."""
    failed = 0
    for part in parts:
        if time.perf_counter() > bench.deadline:
            print(f"left out for time: {part}")
            continue
        print(f"-- {part}", flush=True)
        rows = PARTS[part](bench)
        try:
            for row in rows:
                save(bench, {"part": part, **row})
        except Exception as error:
            failed += 1
            traceback.print_exc()
            save(bench, {"part": part, "note": f"failed: {type(error).__name__}: {error}"[:300]})
    return failed


def save(bench: Bench, row: Row) -> None:
    whole = dict.fromkeys(COLUMNS, "") | bench.about | row
    append_csv(bench.out / CSV_NAME, [whole])
    shown = io.StringIO()
    print({name: value for name, value in row.items() if value != ""}, file=shown)
    print(shown.getvalue(), end="", flush=True)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    build = ROOT / "build"
    parser.add_argument("--run", type=Path, help="run folder of a causal DNA model (build/dna_run)")
    parser.add_argument("--genome", type=Path, default=build / "dna" / "human.fa.gz", help="what the variants lie on")
    parser.add_argument("--data", type=Path, default=build / "inference", help="what data.py filled")
    parser.add_argument("--chromosome", type=Path, default=build / "dna" / "chr20.fa.gz", help="a FASTA of one record")
    parser.add_argument("--region", default="chr22_seg08:1183335-1183834", help="to mutate: an Alu and 200 bases")
    parser.add_argument("--logo-region", default="chr22_seg08:1183395-1183494", help="its beginning, for the logo")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "inference" / "out", help="folder for results")
    parser.add_argument("--work", type=Path, help="folder for large files; removed at the end if not given")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, in which order")
    parser.add_argument("--seconds", type=float, default=230, help="begin nothing after so many seconds")
    parser.add_argument("--commit", help="what to write where there is no git")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on embedded data")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        return measure(bench_of(options, work), options.parts.split(","))


if __name__ == "__main__":
    sys.exit(main())
