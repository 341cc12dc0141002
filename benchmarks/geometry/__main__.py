"""The table: every series, ours beside the others; of what we refuse, what the others make."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.geometry.readers import READERS, Unread, compare
from benchmarks.geometry.series import CASES, Case, files
from meddaemon.domain.errors import InputRefused
from meddaemon.inference.volume import assemble_read, read_headers

SHARED = Path(__file__).resolve().parents[3] / "shared/dicom"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry", description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder of real DICOM files")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    arguments = parser.parse_args()
    print(f"| series | ours | {' | '.join(arguments.readers)} |")
    print("|---" * (2 + len(arguments.readers)) + "|")
    for case in CASES:
        print(f"| {case.name} | {' | '.join(row(case, arguments.shared, arguments.readers))} |", flush=True)
    return 0


def row(case: Case, shared: Path, readers: list[str]) -> Iterator[str]:
    """The cells of a series: ours, then each of the others beside it."""
    with tempfile.TemporaryDirectory() as folder:
        paths = files(case, shared, Path(folder))
        said, volume = [], None
        try:
            volume = assemble_read(read_headers(paths))
        except InputRefused as refusal:
            said.append(f"refused: {refusal.reason}")
            if case.policy is not None:
                volume = assemble_read(read_headers(paths), case.policy)
                said.append("by contract")
        if volume is not None:
            said.append(f"{' × '.join(map(str, volume.voxels.shape))} {volume.voxels.dtype}")
        yield ", ".join(said)
        for name in readers:
            try:
                seen = READERS[name](paths)
                if volume is None:
                    spacing = " × ".join(f"{each:.4g}" for each in (seen.affine[:3, :3] ** 2).sum(axis=0) ** 0.5)
                    verdict = f"{' × '.join(map(str, seen.voxels.shape))}, {spacing} mm"
                else:
                    verdict = str(compare(volume, seen))
                yield "; ".join(filter(None, (verdict, seen.said)))
            except Unread as reason:
                yield str(reason)


if __name__ == "__main__":
    sys.exit(main())
