"""Tables of what was measured."""

from collections.abc import Sequence
from statistics import median

Run = dict[str, object]
Runs = dict[str, dict[str, list[Run]]]
"""By case and contestant."""

MONAI, SHIPPED, BARE = "monai.bundle run", "ours, as shipped", "bare forward passes"


def table(runs: Runs, dices: dict[str, dict[str, float]]) -> str:
    lines = [
        "Wall seconds, median (min-max). × is the time of `monai.bundle run` over theirs, median within rounds.",
        "× CPU is the same of CPU seconds, which a machine with other work changes less.",
        "Within: from volume to prediction (preprocess + infer + postprocess), and × the bare forward passes.",
        "",
        "| case | contestant | seconds | × | × CPU | within | × bare | CPU s | peak MB | Dice to MONAI's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, contestants in runs.items():
        for name, each in contestants.items():
            dice = dices.get(case, {}).get(name)
            drawn = "-" if dice is None else f"{dice:.5f}"
            lines.append(f"| {case} | {name} | {_cells(each, contestants)} | {drawn} |")
    return "\n".join(lines)


def _cells(runs: Sequence[Run], contestants: dict[str, list[Run]]) -> str:
    failed = [str(run["failed"]) for run in runs if "failed" in run]
    if failed:
        return f"fails ({failed[0]}) | - | - | - | - | - | -"
    seconds = [number(run, "seconds") for run in runs]
    within = "-"
    if "within" in runs[0]:
        within = f"{median(number(run, 'within') for run in runs):.3f}"
    return " | ".join(
        (
            f"{median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})",
            _shown(ratio(contestants.get(MONAI, []), "seconds", runs, "seconds")),
            _shown(ratio(contestants.get(MONAI, []), "cpu", runs, "cpu")),
            within,
            _shown(ratio(runs, "within", contestants.get(BARE, []), "seconds")),
            f"{median(number(run, 'cpu') for run in runs):.2f}",
            f"{median(number(run, 'peak_mb') for run in runs):.0f}",
        )
    )


def ratio(above: Sequence[Run], upper: str, below: Sequence[Run], lower: str) -> float:
    """The median of one measure over another, made within each round."""
    pairs = [
        number(one, upper) / number(other, lower)
        for one, other in zip(above, below, strict=False)
        if upper in one and lower in other
    ]
    return median(pairs) if pairs else float("nan")


def goals(runs: Runs, gated: Sequence[str], sizes: tuple[str, str]) -> str:
    """What was to be reached, and whether it was."""
    lines = []
    small, large = sizes
    for case, contestants in runs.items():
        monai, shipped = contestants.get(MONAI, []), contestants.get(SHIPPED, [])
        if not case.startswith("spleen"):
            continue
        found = ratio(monai, "seconds", shipped, "seconds")
        if small in case:
            lines.append(f"{_mark(found >= 10)} {case}: {found:.1f} × {MONAI} with bit-equal settings (goal 10)")
        if large in case:
            lines.append(f"{_mark(found >= 2)} {case}: {found:.2f} × {MONAI} with bit-equal settings (goal 2)")
            ratios = {
                name: ratio(monai, "seconds", contestants[name], "seconds") for name in gated if name in contestants
            }
            if ratios:
                best = max(ratios, key=lambda name: ratios[name])
                lines.append(f"{_mark(ratios[best] >= 6)} {case}: {ratios[best]:.2f} × {MONAI} with {best} (goal 6)")
        within = ratio(shipped, "within", contestants.get(BARE, []), "seconds")
        lines.append(f"{_mark(within <= 1.1)} {case}: {within:.3f} × the bare forward passes (goal 1.1)")
    return "\n".join(lines)


def number(run: Run, key: str) -> float:
    value = run.get(key, float("nan"))
    return float(value) if isinstance(value, int | float) else float("nan")


def _shown(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _mark(reached: bool) -> str:
    return "ok  " if reached else "MISS"
