"""The `seqmodels` command. Thin: it turns words into typed arguments and calls the library.

The only place where Hydra and DictConfig exist. Nothing heavy is imported before a command really runs, so that
`--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

# command -> (module of seqmodels.cli with `run(words) -> exit code`, one line)
COMMANDS = {
    "train": ("train", "train a model on a data set; resume=<run> continues, --multirun tries several values"),
    "evaluate": ("evaluate", "loss and metrics of a run on a held-out split"),
    "generate": ("generate", "write new sequences with a trained model, as FASTA or sound"),
    "score": ("score", "score variants: how likely the model finds each alternative allele"),
    "mutagenesis": ("mutagenesis", "score every substitution of a region; a table and a sequence logo"),
    "embed": ("embed", "embeddings and log-likelihoods of DNA of any length, in constant memory"),
    "convert": ("convert", "published weights (state-spaces, Hugging Face, Caduceus) to a run folder, and back"),
    "describe": ("describe", "parameters, operations, state and memory of a model: will a length fit?"),
    "prepare": ("prepare", "download public data, with checksums and resume"),
    "bench": ("bench", "time the ops on this machine"),
    "doctor": ("doctor", "devices, versions, and which implementation each op takes and why"),
}
OWN_PACKAGES = ("seqmodels", "seqkernels", "domains")
FULL_TRACEBACK = "SEQMODELS_TRACEBACK"


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        words: what stands behind `seqmodels`; None takes the process's own.

    Returns:
        0 if it worked, 1 for an error, 2 for a wrong command line, 130 and 143 after Ctrl-C and SIGTERM.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        import seqmodels

        print(f"seqmodels {seqmodels.__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"seqmodels: there is no command {command!r}{hint} Commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if any(word in ("-h", "--help") for word in rest):
        from seqmodels.cli.help import command_help

        print(command_help(command, COMMANDS[command][1]))
        return 0
    return _guarded(command, rest)


def _guarded(command: str, rest: list[str]) -> int:
    """Errors of the user as one message; bugs with their traceback."""
    if os.environ.get(FULL_TRACEBACK, "0") not in ("", "0"):
        return _run(command, rest)
    try:
        return _run(command, rest)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone (head)
        return 1
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if isinstance(error, ImportError) and (error.name or "").split(".")[0] in OWN_PACKAGES:
            raise  # a package that is not installed is the user's business, a broken import of ours is a bug
        message = str(error) or type(error).__name__
        print(f"seqmodels {command}: {message}\n({FULL_TRACEBACK}=1 shows where)", file=sys.stderr)
        return 1


def _run(command: str, rest: list[str]) -> int:
    # Read when torch loads OpenMP. Its waiting threads spin otherwise, and on two cores that also had other work to do
    # a small model then trained ten to sixty times slower (400-2,000 instead of 13,000-31,000 tokens a second).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return importlib.import_module(f"seqmodels.cli.{COMMANDS[command][0]}").run(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return (
        "seqmodels: long-context sequence models for DNA and raw audio\n\n"
        "usage: seqmodels <command> [key=value ...]        seqmodels <command> --help\n\n"
        + "\n".join(lines)
        + "\n\nexamples:\n"
        "  seqmodels train experiment=quickstart_dna domain.dataset.fasta=my.fa\n"
        "  seqmodels train experiment=quickstart_audio domain.dataset.folder=wavs/\n"
        "  seqmodels train resume=runs/<name>\n"
        "  seqmodels generate run=runs/<name> length=1000\n"
    )
