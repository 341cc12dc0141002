"""Our loader beside others, syntax by syntax: seconds, ratios, peak memory, and that all give the same voxels."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.loading import report, series
from benchmarks.loading.readers import NAMES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT.parent / "shared/dicom/compressed/CT1_UNC.dcm"


def main() -> int:
    arguments = _arguments()
    runs: report.Runs = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="loading-") as folder:
        for syntax in arguments.syntaxes:
            files, warm_up = Path(folder) / "series", Path(folder) / "warm-up"
            print(f"{syntax}: writing {arguments.planes} planes", file=sys.stderr, flush=True)
            for where, planes in ((files, arguments.planes), (warm_up, 4)):
                written = series.write(where, syntax, arguments.source, planes=planes, distinct=arguments.distinct)
            runs[syntax] = _rounds(arguments, files, warm_up, syntax)
            for path in (*files.iterdir(), *warm_up.iterdir()):
                path.unlink()
            del written
    plane, _ = series.source_plane(arguments.source)
    volume_mb = arguments.planes * plane.nbytes / 2**20
    print(report.table(runs, volume_mb), report.goals(runs, volume_mb), sep="\n\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1))
    return 0


def _rounds(arguments: argparse.Namespace, files: Path, warm_up: Path, syntax: str) -> dict[str, list[report.Run]]:
    """In each round every reader has its turn, a different one first."""
    found: dict[str, list[report.Run]] = {name: [] for name in arguments.readers}
    for number in range(arguments.rounds):
        shift = number % len(arguments.readers)
        for name in (*arguments.readers[shift:], *arguments.readers[:shift]):
            run = _run(name, files, warm_up, arguments.timeout)
            found[name].append(run)
            print(f"{syntax}, round {number + 1}, {name}: {run.get('seconds', run.get('failed'))}", file=sys.stderr)
    return found


def _run(name: str, files: Path, warm_up: Path, timeout: float) -> report.Run:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Everybody finds the files in memory: the disk is not what is measured.
    for path in files.iterdir():
        path.read_bytes()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loading.readers", name, str(files), str(warm_up)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {timeout:g} s"}
    if done.returncode:
        return {"failed": f"ended with {done.returncode}"}
    run: report.Run = json.loads(done.stdout.splitlines()[-1])
    return run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--planes", type=int, default=300)
    parser.add_argument("--distinct", type=int, default=30, help="different planes; the others repeat them")
    parser.add_argument("--syntaxes", nargs="+", choices=series.SYNTAXES, default=series.MAIN)
    parser.add_argument("--readers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--source", type=Path, default=SOURCE, help="a file with one 512 × 512 plane of 16 bits")
    parser.add_argument("--folder", type=Path, help="where the series are written (default: the system's)")
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--json", type=Path, help="keep every run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
