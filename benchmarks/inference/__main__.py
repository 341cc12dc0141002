"""Our inference beside `python -m monai.bundle run`: same study, same bundle, same machine, in turns.

Seconds, ratios, CPU, peak memory, how near the results are to MONAI's, and how near to the bare forward passes the
part between volume and prediction comes.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.inference import bundles, peer, report, studies
from benchmarks.inference.processes import Contestant

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT.parent / "shared/weights/bundles"
SPLEEN = "spleen"
SMALL, LARGE = "96×96×48", "256×256×64"
STUDIES: dict[str, tuple[tuple[int, int, int], tuple[float, float, float]]] = {
    f"{SMALL} as the model": ((48, 96, 96), (2.0, 1.5, 1.5)),
    f"{LARGE} as the model": ((64, 256, 256), (2.0, 1.5, 1.5)),
    f"{LARGE} at 1 × 1 × 3 mm": ((64, 256, 256), (3.0, 1.0, 1.0)),
}
"""[plane, row, column], and its spacing in mm: that of the model, so that nothing is resampled, or another."""
GATED = {
    "bf16": 'precision = "bf16"\nchannels_last = true\nwindow_batch = 1',
    "bf16, fitted": 'precision = "bf16"\nchannels_last = true\nwindow_batch = 1\nwindow = "fitted"',
    "bf16, fitted, overlap .25": (
        'precision = "bf16"\nchannels_last = true\nwindow_batch = 1\nwindow = "fitted"\noverlap = 0.25'
    ),
    "OpenVINO bf16, fitted": 'engine = "openvino"\nprecision = "bf16"\nwindow_batch = 1\nwindow = "fitted"',
}


def main() -> int:
    arguments = _arguments()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    runs: report.Runs = {}
    dices: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="inference-") as name:
        folder = Path(name)
        written_bundles = {
            name: bundles.write_spleen(folder / name)
            if name == SPLEEN
            else bundles.copy_of(WEIGHTS / name, folder / name)
            for name in arguments.bundles
        }
        for (title, bundle), study in product(written_bundles.items(), arguments.studies):
            case = f"{title}, {study}"
            shape, spacing = STUDIES[study]
            print(f"{case}: writing", file=sys.stderr, flush=True)
            written = studies.write(folder / "study", shape, spacing)
            runs[case], dices[case] = _rounds(arguments, folder, bundle, written, case)
            shutil.rmtree(folder / "study")
    print(
        report.table(runs, dices), report.goals(runs, [f"ours, {each}" for each in GATED], (SMALL, LARGE)), sep="\n\n"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": runs, "dice": dices}, indent=1))
    return 0


def _rounds(
    arguments: argparse.Namespace, folder: Path, bundle: Path, written: tuple[Path, Path], case: str
) -> tuple[dict[str, list[report.Run]], dict[str, float]]:
    """In each round everybody has a turn, a different one first; nobody's first run counts."""
    dicom, nifti = written
    # The zoo's bundles read NIfTI; those beside the checkout read DICOM themselves.
    given = nifti if case.startswith(SPLEEN) else dicom
    shipped = bundles.write_contract(folder / "as_shipped", bundle, "as_shipped")
    drawn: dict[str, Path] = {}
    with ExitStack() as stack:
        warm = {report.SHIPPED: stack.enter_context(Contestant("warm", shipped, ROOT))}
        for number, name in enumerate(arguments.gated):
            engine = f"[engine]\nparity = 0.5\n{GATED[name]}\n"
            contract = bundles.write_contract(folder / f"gated{number}", bundle, f"gated{number}", engine)
            warm[f"ours, {name}"] = stack.enter_context(Contestant("warm", contract, ROOT))
        warm[report.BARE] = stack.enter_context(Contestant("bare", shipped, ROOT))
        names = [report.MONAI, *warm]
        found: dict[str, list[report.Run]] = {name: [] for name in names}
        for number in range(arguments.rounds + 1):
            shift = number % len(names)
            for name in (*names[shift:], *names[:shift]):
                labels = folder / f"{names.index(name)}.npy"
                if name == report.MONAI:
                    # The files that it starts from are in memory after one run.
                    run = peer.run(bundle, given, folder / "out", labels, arguments.timeout)
                else:
                    run = warm[name].ask(dicom, labels)
                drawn[name] = labels
                if number:
                    found[name].append(run)
                said = run.get("failed", f"{report.number(run, 'seconds'):.3f} {run.get('parts', '')}")
                print(f"{case}, round {number}, {name}: {said}", file=sys.stderr, flush=True)
    reference = _labels(drawn[report.MONAI])
    near = {name: _dice(_labels(path), reference) for name, path in drawn.items() if path.exists()}
    for path in drawn.values():
        path.unlink(missing_ok=True)
    return found, near


def _labels(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None":
    return np.load(path) if path.exists() else None


def _dice(one: object, other: object) -> float:
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray) or one.shape != other.shape:
        return float("nan")
    both, either = np.count_nonzero((one > 0) & (other > 0)), np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * both / either if either else 1.0


def _arguments() -> argparse.Namespace:
    gated = [name for name in GATED if "OpenVINO" not in name or importlib.util.find_spec("openvino") is not None]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    beside = [path.name for path in sorted(WEIGHTS.glob("*")) if (path / "configs/inference.json").is_file()]
    parser.add_argument("--bundles", nargs="+", choices=[SPLEEN, *beside], default=[SPLEEN])
    parser.add_argument("--gated", nargs="*", choices=GATED, default=gated, help="settings behind the parity gate")
    parser.add_argument("--folder", type=Path, help="where studies and bundles are written (default: the system's)")
    parser.add_argument("--threads", type=int, help="of everybody (default: the machine's cores)")
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--json", type=Path, help="keep every run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
