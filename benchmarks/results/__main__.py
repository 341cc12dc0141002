"""Time and memory of a segmentation with many segments: ours, gate included, beside highdicom's."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.results.volumes import organs, series

WRITERS = ("ours, and the gate", "highdicom")
FORMS = ("binary", "labelmap")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("--planes", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--segments", type=int, default=100)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--writers", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "labels.npy", organs(arguments.planes, arguments.size, arguments.segments))
        (folder / "series").mkdir()
        series(folder / "series", arguments.planes, arguments.size)
        print(f"{arguments.planes} x {arguments.size} x {arguments.size}, {arguments.segments} segments\n")
        print("| form | by | seconds | CPU s | peak MB | of which before | file MB |")
        print("|---|---|---|---|---|---|---|")
        for form in arguments.forms:
            # In turns: what else the machine does hits everybody.
            runs = [
                {writer: run(folder, writer, form, arguments.segments) for writer in arguments.writers}
                for _ in range(arguments.rounds)
            ]
            for writer in arguments.writers:
                found = {key: median(each[writer][key] for each in runs) for key in runs[0][writer]}
                cells = (f"{found[key]:.1f}" for key in ("seconds", "cpu"))
                sizes = (f"{found[key]:.0f}" for key in ("peak_mb", "before_mb"))
                print(f"| {form} | {writer} | {' | '.join((*cells, *sizes))} | {found['file_mb']:.1f} |", flush=True)
    return 0


def run(folder: Path, writer: str, form: str, segments: int) -> dict[str, float]:
    """Return what one run took, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.results.writers", str(folder), writer, form, str(segments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
