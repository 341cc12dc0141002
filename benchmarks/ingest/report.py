"""Tables in Markdown, and everything as JSON."""

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from .measure import OUR_SENDER, Measurement
from .receivers import DCMTK, NULL, ORTHANC, PYNETDICOM, RAW, RECEIVERS

REFERENCES = {"×Orthanc": ORTHANC, "×pynetdicom": PYNETDICOM, "×storescp +B": DCMTK, "×raw": RAW}
"""Columns of ratios, and the receiver that each divides by."""
_HEAD = ("load", "receiver", "durable", "inst/s", "MB/s", "CPU s/1000", "peak MiB", *REFERENCES)
_COLUMNS: tuple[tuple[Callable[[Measurement], float], str], ...] = (
    (lambda each: each.rate, ",.0f"),
    (lambda each: each.megabytes_per_second, ",.0f"),
    (lambda each: each.cpu_per_thousand, ".2f"),
    (lambda each: each.peak_mebibytes, ",.0f"),
)


def tables(measurements: Sequence[Measurement]) -> str:
    """Return one table for each sender: medians over the rounds and, of more than one round, their range."""
    return "\n\n".join(
        f"### {sender}\n{_table([each for each in measurements if each.sender == sender])}"
        for sender in _in_order((OUR_SENDER, *(each.sender for each in measurements)))
    )


def notes(measurements: Sequence[Measurement]) -> str:
    """Return what a reader of the tables must know: how far away the sender's limit is, who else was busy."""
    others = sum(each.others_cpu_seconds for each in measurements) / sum(each.elapsed for each in measurements)
    lines = [
        f"Others, kernel threads among them, used {others:.2f} of {os.cpu_count()} cores while we measured.",
        "Ratios are made within a round, before the median is taken; raw TCP -> file + fsync and "
        "the null receiver speak to the raw sender only.",
    ]
    nearest = _nearest_to_null(measurements)
    if nearest:
        lines.append(nearest)
    lines += sorted(
        {
            f"PROBLEM: {each.receiver}, {each.load}, {each.sender}: {each.problem}"
            for each in measurements
            if each.problem
        }
    )
    return "\n".join(f"- {line}" for line in lines)


def write_json(path: Path, machine: dict[str, str], measurements: Sequence[Measurement]) -> None:
    """Write every single measurement."""
    runs = [
        {**asdict(each), "instances_per_second": each.rate, "cpu_seconds_per_1000": each.cpu_per_thousand}
        for each in measurements
    ]
    path.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1, ensure_ascii=False) + "\n")


def _table(measurements: Sequence[Measurement]) -> str:
    rows: list[Sequence[str]] = [_HEAD]
    for load in _in_order(each.load for each in measurements):
        for receiver in _in_order(each.receiver for each in measurements):
            runs = [each for each in measurements if (each.load, each.receiver) == (load, receiver)]
            peers = [each for each in measurements if each.load == load]
            if runs:
                rows.append(
                    (
                        load,
                        receiver,
                        RECEIVERS[receiver].durable,
                        *(_spread([of(each) for each in runs], form) for of, form in _COLUMNS),
                        *(
                            _ratio(runs, [peer for peer in peers if peer.receiver == name])
                            for name in REFERENCES.values()
                        ),
                    )
                )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _ratio(runs: Sequence[Measurement], references: Sequence[Measurement]) -> str:
    rates = {each.round: each.rate for each in references if each.rate}
    ratios = [each.rate / rates[each.round] for each in runs if each.round in rates]
    return f"{statistics.median(ratios):.2f}" if ratios else "–"


def _spread(values: Sequence[float], form: str) -> str:
    median, low, high = (format(each, form) for each in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low}–{high})"


def _nearest_to_null(measurements: Sequence[Measurement]) -> str:
    """Say how near any receiver comes to the rate at which the sender is the limit, and what sending costs."""
    nulls = {(each.load, each.round): each for each in measurements if each.receiver == NULL}
    shares: dict[tuple[str, str], list[float]] = {}
    for each in measurements:
        null = nulls.get((each.load, each.round))
        if null and each.sender == null.sender and each.receiver not in {NULL, RAW}:
            shares.setdefault((each.receiver, each.load), []).append(each.rate / null.rate)
    if not shares:
        return ""
    share, (receiver, load) = max((statistics.median(ratios), of) for of, ratios in shares.items())
    cost = statistics.median(1000 * each.sender_cpu_seconds / max(1, each.instances) for each in nulls.values())
    return (
        f"Nearest to the null receiver, whose rate is the sender's limit: {receiver} at {load}, {share:.0%} of it. "
        f"The sender spends {cost:.2f} CPU s/1000 on it (median over the loads)."
    )


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
