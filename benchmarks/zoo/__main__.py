"""`python -m benchmarks.zoo --zoo DIR [--only NAME ...] [--lock FILE]`: the table of the model zoo, as Markdown.

DIR is the folder `models` of a copy of Project-MONAI/model-zoo, or its bare repository. Its weights lie elsewhere:
random ones, from a fixed seed, are put where each bundle expects its own, in a copy. Each bundle runs in a process of
its own and, where there are others on the machine, holds the lock FILE meanwhile.
"""

import argparse
import fcntl
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.zoo.cases import CASES, NOT_APPLICABLE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of bundles")
    parser.add_argument("--only", nargs="+", default=[], help="names of bundles")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each bundle")
    parser.add_argument("--json", type=Path, help="where the rows are written as they come")
    parser.add_argument("--lock", type=Path, help="file that is locked while a bundle runs")
    given = parser.parse_args()
    with _bundles(given.zoo.resolve()) as zoo:
        names = given.only or [
            *CASES,
            *sorted(path.name for path in zoo.iterdir() if path.is_dir() and path.name not in CASES),
        ]
        rows = []
        for name in names:
            with _alone(given.lock):
                rows.append(_row(zoo, name, given.limit))
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1))
            print(f"{name}: {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
    print(table(rows))
    return 0


@contextmanager
def _bundles(zoo: Path) -> Iterator[Path]:
    """Give the folder of bundles; those of a bare repository are written out for as long as they are needed."""
    if not (zoo / "objects").is_dir():
        yield zoo
        return
    with tempfile.TemporaryDirectory(prefix="zoo-models-") as folder:
        command = ["git", f"--git-dir={zoo}", "archive", "HEAD", "models"]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as opened:
            opened.extractall(folder, filter="data")
        yield Path(folder, "models")


@contextmanager
def _alone(lock: Path | None) -> Iterator[None]:
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _row(zoo: Path, name: str, limit: float) -> dict[str, Any]:
    if name in NOT_APPLICABLE:
        return {"name": name, "error": f"not applicable: {NOT_APPLICABLE[name]}"}
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.zoo.run", str(zoo), name, scratch],
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"name": name, "error": f"not done within {limit:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"name": name, "error": f"ended with {done.returncode}: {done.stderr[-200:]}"}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def table(rows: list[dict[str, Any]]) -> str:
    head = ("bundle", "loads", "runs", "result", "grid", "oracle Dice", "mode", "load s", "warm s", "peak MB", "shims")
    lines = [" | ".join(["", *head, "note", ""]).strip(), "|" + "---|" * (len(head) + 1)]
    for row in rows:
        cells = (
            row["name"],
            "yes" if "load" in row else "no",
            "yes" if "warm" in row else "no",
            row.get("result", ""),
            row.get("grid", ""),
            f"{row['oracle']:.3f}" if "oracle" in row else "",
            row.get("mode", ""),
            f"{row['load']:.1f}" if "load" in row else "",
            f"{row['warm']:.1f}" if "warm" in row else "",
            str(row.get("peak_mb", "")),
            row.get("shims", ""),
            row.get("error") or (CASES[row["name"]].note if row["name"] in CASES else ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    applicable = [row for row in rows if row["name"] not in NOT_APPLICABLE]
    ran = sum("warm" in row for row in applicable)
    return "\n".join([*lines, "", f"{ran} of {len(applicable)} that take an image run."])


if __name__ == "__main__":
    sys.exit(main())
