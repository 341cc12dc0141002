"""`meddaemon evaluate`: stored results held against a reference."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meddaemon.cli.opening import USAGE, Config, fail, open_database, open_settings
from meddaemon.cli.output import shown
from meddaemon.db import instances, outcomes
from meddaemon.domain.contract import ModelContract

if TYPE_CHECKING:
    from meddaemon.evaluation.masks import Named

_LIBRARIES = ("sklearn", "matplotlib", "monai", "nibabel")


def evaluate(
    reference: Annotated[
        list[Path],
        typer.Argument(help="Segmentations, reports (SR), NIfTI label maps, tables (CSV), or folders of them."),
    ],
    model: Annotated[str, typer.Option(help="The model whose results are evaluated.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json (made if it is not there).")],
    version: Annotated[str | None, typer.Option(help="Only results of this version of the model.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="What a number of NIfTI files means: 1=Brain. Else they are segment numbers of the result."),
    ] = None,
    hit_distance: Annotated[
        float, typer.Option(min=0, help="Detections hit a lesion also where they are so near to its centre, in mm.")
    ] = 0.0,
    hit_iou: Annotated[
        list[float] | None,
        typer.Option(min=0.01, max=1, help="Count hits by overlap, too: intersection over union from this on."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="Samples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    config: Config = None,
) -> None:
    """Compare stored results with a reference: accuracy, AUC, Dice, distances, FROC, errors, with intervals."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        fail(f"evaluation needs {', '.join(missing)}: pip install 'meddaemon[evaluate]'")
    # Nobody else needs MONAI, scikit-learn and matplotlib, which take seconds to load.
    from meddaemon.evaluation.cases import match  # noqa: PLC0415
    from meddaemon.evaluation.estimates import Bootstrap  # noqa: PLC0415
    from meddaemon.evaluation.evaluate import Files, Options  # noqa: PLC0415
    from meddaemon.evaluation.evaluate import evaluate as compare  # noqa: PLC0415
    from meddaemon.evaluation.page import as_html  # noqa: PLC0415
    from meddaemon.evaluation.pictures import images_of  # noqa: PLC0415
    from meddaemon.evaluation.readers import read_references  # noqa: PLC0415
    from meddaemon.evaluation.report import as_json, report_of  # noqa: PLC0415

    settings = open_settings(config)
    contract = settings.contracts.get(model)
    references = read_references(reference, _names(label or []))
    with open_database(settings) as database, database.read() as connection:
        found = outcomes.outcomes(connection, model, version=version)
        superseded = outcomes.count_superseded(connection, model, version=version)
        unanswered = outcomes.unanswered(connection, model, [each.case.study_instance_uid for each in references])
        known = outcomes.models(connection)
        patients = outcomes.patients(connection, sorted({each.study_instance_uid for each in found}))
        pictures = instances.used(connection, sorted({uid for each in found for uid, _ in images_of(each)}))
    if not found:
        of_version = f" of version {version}" if version else ""
        fail(f"model {model!r} has no current results{of_version}; models with results: {', '.join(known) or 'none'}")
    matches = match(references, found, unanswered)
    options = Options(
        bootstrap=Bootstrap(resamples=resamples, seed=seed, patients=patients),
        hit_distance_mm=hit_distance,
        hit_iou=tuple(sorted(set(hit_iou or ()))),
        groups=_groups(contract),
    )
    images = {uid: instances.path_of(settings.store.instances, sha256) for uid, sha256 in pictures.items()}
    comparison = compare(matches, Files(results=settings.store.results, images=images), options)
    notes = (
        ()
        if contract
        else (f"model {model} is named by no rule and not by models.enabled: its classes are taken to be independent",)
    )
    report = report_of(model, matches, comparison, options, superseded=superseded, notes=notes)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(as_json(report), encoding="utf-8")
    (out / "report.html").write_text(as_html(report), encoding="utf-8")
    for each in (*report.cases.missing, *report.cases.refused):
        typer.echo(f"not compared  {shown(each.reference)}: {shown(each.remark)}", err=True)
    cases = report.cases
    typer.echo(
        f"{len(cases.compared)} compared, {len(cases.missing)} missing, {len(cases.refused)} refused, "
        f"{len(cases.unreferenced)} without a reference, {cases.superseded} superseded; see {out / 'report.html'}"
    )
    if not cases.compared:
        fail("no reference could be compared with a result")


def _names(labels: list[str]) -> "list[Named]":
    from meddaemon.evaluation.masks import Named  # noqa: PLC0415

    names = []
    for each in labels:
        number, equals, name = each.partition("=")
        if not equals or not number.isdecimal() or not 0 < int(number) <= 65535 or not name.strip():
            typer.echo(f"meddaemon: --label {shown(each)}: say NUMBER=SEGMENT, such as 1=Brain", err=True)
            raise typer.Exit(USAGE)
        names.append(Named(number=int(number), label=name.strip()))
    return names


def _groups(contract: ModelContract | None) -> dict[str, str]:
    """Return the group of each finding (`scheme:value`) whose class excludes others."""
    classes = contract.classes if contract else ()
    return {f"{each.finding.scheme}:{each.finding.value}": each.group for each in classes if each.group}
