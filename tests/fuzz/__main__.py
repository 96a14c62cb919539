"""`make fuzz`: search for inputs that break a target, ten minutes each, starting with the corpus.

A breaking input is written to `tests/fuzz/found/`. Fix the product, and move the file to
`tests/fuzz/corpus/`, where `make test` runs it from then on.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mailer"]):
    from tests.fuzz.targets import CORPUS, TARGETS, WORDS

FOUND = Path(__file__).with_name("found")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"only some of: {', '.join(TARGETS)}"
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="minutes for each target (default: 10)"
    )
    options = parser.parse_args(arguments)
    chosen = options.targets or list(TARGETS)
    if unknown := set(chosen) - TARGETS.keys():
        parser.error(f"{', '.join(unknown)} is not a target. The targets are {', '.join(TARGETS)}.")
    return max([_fuzz(name, seconds=int(60 * options.minutes)) for name in chosen])


def _fuzz(name: str, *, seconds: int) -> int:
    """Fuzz in a process of its own, since atheris ends its process."""
    print(f"Fuzzing {name} for {seconds} s", file=sys.stderr)
    process = multiprocessing.get_context("fork").Process(target=_look, args=(name, seconds))
    process.start()
    process.join()
    return process.exitcode or 0


def _look(name: str, seconds: int) -> None:
    growing, words = FOUND / name, FOUND / "words"
    growing.mkdir(parents=True, exist_ok=True)
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=20",
        f"-dict={words}",
        f"-artifact_prefix={FOUND}/{name}-",
    ]
    # atheris writes inputs that reach new code into the first folder.
    atheris.Setup([sys.argv[0], *options, str(growing), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{octet:02x}" for octet in word)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
