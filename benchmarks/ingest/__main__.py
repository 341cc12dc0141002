"""`python -m benchmarks.ingest`: every receiver under the same loads, interleaved, and the proof of our own word."""

import argparse
import itertools
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .data_sets import KINDS
from .dcmtk_senders import FILE_SENDERS
from .measure import Bench, Load, Measurement
from .proof import NotKept
from .receivers import NULL, OURS, RAW, RECEIVERS, Receiver
from .report import notes, tables, write_json
from .sender import Senders

ON_POSTGRESQL = f"{OURS}, PostgreSQL"
FILE_SENDER_COUNT = 100
"""At most so many instances for DCMTK's senders: with Nagle's algorithm they wait more than they send."""


def main() -> None:
    given = _arguments()
    receivers = _installed(given.receivers)
    loads = _loads(given)
    measurements: list[Measurement] = []
    scratch = Path(tempfile.mkdtemp(prefix="meddaemon-bench-", dir=given.folder))
    machine = _machine(scratch)
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    runs = itertools.count()
    try:
        with Senders(max(given.associations)) as senders:
            for number in range(given.rounds):
                with Bench(senders, scratch / f"round-{number}", number) as bench:
                    measurements += _round(bench, loads, receivers, number, runs)
                shutil.rmtree(scratch / f"round-{number}")
    except NotKept as broken:
        sys.exit(f"OUR LISTENER DID NOT KEEP ITS WORD: {broken}\nThe evidence: {scratch}")
    except BaseException:
        shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)
    print(f"\n{tables(measurements)}\n\n{notes(measurements)}")
    if given.json:
        write_json(given.json, machine, measurements)
    if any(each.problem for each in measurements if each.receiver.startswith(OURS)):
        sys.exit("our listener did not acknowledge everything: see PROBLEM above")


def _round(
    bench: Bench, loads: Sequence[Load], receivers: Sequence[Receiver], number: int, runs: Iterator[int]
) -> Iterator[Measurement]:
    """Start every receiver afresh; put each load on one after the other, a different one first in every round."""
    for receiver in receivers:
        bench.start(receiver)
    for load in loads:
        for receiver in (*receivers[number % len(receivers) :], *receivers[: number % len(receivers)]):
            if load.sender and receiver.name in {RAW, NULL}:
                continue
            measured = bench.measure(receiver, load, next(runs))
            shown = f"{measured.rate:8,.0f} inst/s {measured.cpu_per_thousand:6.2f} CPU s/1000  {measured.problem}"
            print(f"round {number + 1}  {load.name}  {load.sender_name:18}  {receiver.name:26}{shown}", file=sys.stderr)
            yield measured


def _loads(given: argparse.Namespace) -> list[Load]:
    kinds = [KINDS[name].scaled(given.scale, given.size, max(given.associations)) for name in given.kinds]
    loads = [Load(kind=kind, associations=count) for kind in kinds for count in given.associations]
    if given.only_raw_sender:
        return loads
    few = replace(kinds[0], count=min(kinds[0].count, FILE_SENDER_COUNT))
    # First: after large images the memory of most receivers stays large.
    return [
        *(Load(kind=few, associations=1, sender=sender) for sender in FILE_SENDERS if not sender.missing),
        *loads,
    ]


def _installed(names: Sequence[str]) -> list[Receiver]:
    """Return the receivers in the order of their list, ours first in the tables; say which cannot run here."""
    chosen = [receiver for receiver in RECEIVERS.values() if receiver.name in names]
    for receiver in chosen:
        if receiver.missing:
            print(f"without {receiver.name}: {receiver.missing}", file=sys.stderr)
    return [receiver for receiver in chosen if not receiver.missing]


def _machine(folder: Path) -> dict[str, str]:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    _, file_system = max((each for each in mounts if folder.is_relative_to(each[0])), key=lambda each: len(each[0]))
    return {
        "cores": str(os.cpu_count()),
        "file system": file_system,
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "load average before": f"{os.getloadavg()[0]:.1f}",
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    everybody = [name for name in RECEIVERS if name != ON_POSTGRESQL]
    parser.add_argument("--receivers", nargs="+", choices=list(RECEIVERS), default=everybody, metavar="NAME",
                        help=f"some of: {', '.join(map(repr, RECEIVERS))} (all but the one on PostgreSQL)")  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--associations", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="part of the instances that are sent; at least one for each association",
    )
    parser.add_argument("--size", type=float, default=1.0, help="part of the pixels that each instance has")
    parser.add_argument("--only-raw-sender", action="store_true", help="leave out DCMTK's senders")
    parser.add_argument("--folder", type=Path, help="where the receivers keep their files: on the disk to be measured")
    parser.add_argument("--json", type=Path, help="write every single run to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
