"""Tables of what was measured."""

from statistics import median

Run = dict[str, object]
Runs = dict[str, dict[str, list[Run]]]
"""By syntax and reader."""


def table(runs: Runs, volume_mb: float) -> str:
    lines = [
        f"Volume {volume_mb:.0f} MB as int16. Wall seconds, median (min-max); × is their time over ours,"
        " median within rounds.",
        "",
        "| syntax | reader | seconds | × ours | CPU s | peak MB | above volume | same voxels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for syntax, readers in runs.items():
        reference = readers.get("ours", [])
        for reader, each in readers.items():
            lines.append(f"| {syntax} | {reader} | {_cells(each, reference, volume_mb)} |")
    return "\n".join(lines)


def _cells(runs: list[Run], reference: list[Run], volume_mb: float) -> str:
    failed = [str(run["failed"]) for run in runs if "failed" in run]
    if failed:
        return f"fails ({failed[0]}) | - | - | - | - | -"
    seconds = [_number(run, "seconds") for run in runs]
    peak = median(_number(run, "peak_kb") / 1024 for run in runs)
    same = {run["digest"] for run in runs} == {run.get("digest") for run in reference}
    return " | ".join(
        (
            f"{median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})",
            f"{ratio(runs, reference):.2f}",
            f"{median(_number(run, 'cpu') for run in runs):.3f}",
            f"{peak:.0f}",
            f"{peak - volume_mb:.0f}",
            "yes" if same else "NO",
        )
    )


def ratio(runs: list[Run], reference: list[Run]) -> float:
    pairs = [
        _number(theirs, "seconds") / _number(ours, "seconds")
        for theirs, ours in zip(runs, reference, strict=True)
        if "seconds" in theirs and "seconds" in ours
    ]
    return median(pairs) if pairs else float("nan")


GOALS = {("uncompressed", "SimpleITK"): 6.0, ("uncompressed", "pydicom"): 4.0} | {
    ("JPEG lossless", "SimpleITK"): 2.5,
    ("JPEG lossless", "pydicom"): 4.0,
}
PEERS = ("SimpleITK", "SimpleITK, scan", "pydicom", "dcm2niix")


def goals(runs: Runs, volume_mb: float) -> str:
    """What was to be reached, and whether it was."""
    lines = []
    for (syntax, reader), goal in GOALS.items():
        if reader in runs.get(syntax, {}):
            found = ratio(runs[syntax][reader], runs[syntax]["ours"])
            lines.append(f"{_mark(found >= goal)} {syntax}: {found:.2f} × {reader} (goal {goal:g})")
    for syntax, readers in runs.items():
        ratios = {name: ratio(readers[name], readers["ours"]) for name in PEERS if name in readers}
        # NaN, of a peer that cannot read the syntax, is not below anything.
        slowest = min((each for each in ratios.values() if each == each), default=float("inf"))
        lines.append(f"{_mark(slowest >= 1)} {syntax}: {slowest:.2f} × the best of the others (goal 1)")
        peak = median(_number(run, "peak_kb") / 1024 for run in readers["ours"])
        lines.append(f"{_mark(peak <= volume_mb + 100)} {syntax}: peak {peak:.0f} MB (goal {volume_mb + 100:.0f})")
        different = [
            name
            for name, each in readers.items()
            if {run.get("digest") for run in each if "digest" in run} - {readers["ours"][0].get("digest")}
        ]
        lines.append(
            f"{_mark(not different)} {syntax}: same voxels{' but ' if different else ''}{', '.join(different)}"
        )
    return "\n".join(lines)


def _mark(reached: bool) -> str:
    return "ok  " if reached else "MISS"


def _number(run: Run, key: str) -> float:
    value = run.get(key, float("nan"))
    return float(value) if isinstance(value, int | float) else float("nan")
