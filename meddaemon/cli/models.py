"""`meddaemon models`: take bundles in, look at them, check them, and let them work."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from meddaemon.cli.opening import FAILED, Config, Output, fail
from meddaemon.cli.output import Format, print_rows, shown
from meddaemon.config.admission import read_check
from meddaemon.config.settings import ModelFolders, load_model_folders
from meddaemon.domain.codes import Code
from meddaemon.domain.contract import FormulaContract, ModelContract, ScoreContract
from meddaemon.domain.errors import NotFound
from meddaemon.inference.runtime import Limits

models_app = typer.Typer(help="Take models in, check them, and let them work.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the model.")]


@models_app.command("add")
def models_add(
    source: Annotated[str, typer.Argument(help="A folder, a zip archive, or an https:// URL of one.")],
    sha256: Annotated[str, typer.Option(help="SHA-256 that the archive must have; a URL needs it.")] = "",
    name: Annotated[str, typer.Option(help="What to call the model; by default as its metadata do.")] = "",
    contract: Annotated[
        Path | None, typer.Option(help="A contract to use instead of one to complete.", exists=True, dir_okay=False)
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file of who vouches for the host of the URL.")] = None,
    config: Config = None,
) -> None:
    """Take a bundle in: unpacked safely, every file's digest kept, audited without running any of it."""
    from meddaemon.deploy import registry  # noqa: PLC0415  of use to no other command

    directories = _folders(config).directories
    if not directories:
        fail("no models.directories in the settings: name the folder in which models lie")
    added = registry.add(source, directories[0], sha256=sha256, name=name, contract=contract, ca=ca)
    typer.echo(f"added {added.name}: {added.files} files" + (f", SHA-256 {added.sha256}" if added.sha256 else ""))
    for finding in added.findings:
        typer.echo(f"  {finding.kind.value}: {shown(finding.said)}")
    typer.echo(
        f"complete {added.contract_file}, then: meddaemon models show {added.name}; meddaemon models check {added.name}"
    )


@models_app.command("list")
def models_list(output: Output = Format.TABLE, config: Config = None) -> None:
    """List every model, and whether it is given work."""
    from meddaemon.deploy import registry  # noqa: PLC0415  as above

    folders = _folders(config)
    columns = {"model": "name", "version": "version", "digest": "digest", "state": "state", "why": "why"}
    print_rows(registry.listing(folders.directories, folders.records), columns, output)


@models_app.command("show")
def models_show(name: Name, config: Config = None) -> None:
    """Show a model: where it came from, what it takes and says, and what its check found."""
    from meddaemon.deploy import registry  # noqa: PLC0415  as above

    folders = _folders(config)
    contract = registry.load(name, folders.directories, folders.records)
    typer.echo(f"{contract.name} {contract.version}: {shown(contract.title)}, by {shown(contract.manufacturer)}")
    typer.echo(f"  contract {contract.contract_file}\n  digest {contract.digest}")
    if manifest := registry.read_manifest(contract.contract_file):
        archive = f", SHA-256 {manifest.archive_sha256}" if manifest.archive_sha256 else ""
        typer.echo(
            f"  added {manifest.added} by {shown(manifest.by)} from {shown(manifest.source)}{archive}: "
            f"{len(manifest.files)} files"
        )
    for line in _promises(contract):
        typer.echo(f"  {shown(line)}")
    if contract.engine.changes:
        parity = f"{contract.engine.parity:g}"
        typer.echo(
            f"  engine {', '.join(contract.engine.changes)}: parity with the bundle as shipped at least {parity}"
        )
    try:
        check = read_check(contract)
    except ValueError as error:
        typer.echo(f"  {shown(error)}")
    else:
        if check:
            typer.echo(f"  checked {check.at} by {shown(check.by)}, digest {check.digest[:12]}; {contract.record}")
            if check.engine:
                typer.echo(f"  engine compared on {shown(check.host)}: {shown(check.engine)}")
            for result in check.cases:
                typer.echo(f"    {'ok ' if result.ok else 'BAD'} {shown(result.said)}")
    if contract.admission.refusal:
        typer.echo(f"  gets no work: {shown(contract.admission.refusal)}")
    elif contract.admission.forced:
        typer.echo(f"  admitted by force: {shown(contract.admission.forced)}")
    else:
        typer.echo("  admitted")


@models_app.command("check")
def models_check(
    name: Name,
    force: Annotated[str, typer.Option(help="Let it work whatever is found, for this reason, which is shown.")] = "",
    config: Config = None,
) -> None:
    """Run a model's golden cases, as given and turned; only a model whose check is green is given work."""
    from meddaemon.deploy import check, registry  # noqa: PLC0415  as above

    folders = _folders(config)
    contract = registry.load(name, folders.directories, folders.records)
    with check.processes(Limits(sandbox=folders.sandbox)) as models:
        admission = check.check(contract, models, force=force.strip(), say=_say).admission
    if admission.refusal:
        typer.echo(f"{name} gets no work: {shown(admission.refusal)}")
        raise typer.Exit(FAILED)
    forced = f" by force: {shown(admission.forced)}" if admission.forced else ""
    typer.echo(f"{name} is admitted{forced}; restart the daemon to let it work")


@models_app.command("tune")
def models_tune(
    name: Name,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed; the medians count.")] = 3,
    output: Output = Format.TABLE,
    config: Config = None,
) -> None:
    """Time a model on its golden case with every engine there is here, beside the bundle as shipped; change nothing."""
    from meddaemon.deploy import check, registry, tune  # noqa: PLC0415  as above

    folders = _folders(config)
    contract = registry.load(name, folders.directories, folders.records)
    with check.processes(Limits(sandbox=folders.sandbox)) as models:
        found = tune.tune(contract, models, rounds=rounds)
    columns = {"settings": "settings", "seconds": "seconds", "faster": "faster", "parity": "parity", "why": "why"}
    print_rows(found, columns, output)
    chosen = tune.best(found, contract.engine.parity)
    if output is Format.TABLE and chosen:
        typer.echo(f"\nfor {contract.contract_file}, then: meddaemon models check {name}\n\n{chosen.lines}")
    elif output is Format.TABLE:
        typer.echo(f"\nnothing is faster and has a parity of {contract.engine.parity:g}: leave it as shipped")


@models_app.command("golden")
def models_golden(
    name: Name,
    case: Annotated[str, typer.Argument(help="Name of the new case.")],
    series: Annotated[list[str], typer.Argument(help="One KEY=FOLDER of DICOM files for each input of the model.")],
    modality: Annotated[str, typer.Option(help="Modality of the series.")] = "MR",
    config: Config = None,
) -> None:
    """Freeze what the model makes of these volumes as a golden case: only once a person has found it right."""
    from meddaemon.deploy import check, registry  # noqa: PLC0415  as above

    folders = _folders(config)
    contract = registry.load(name, folders.directories, folders.records)
    inputs = {}
    for each in series:
        key, _, folder = each.partition("=")
        inputs[key] = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    if set(inputs) != {each.key for each in contract.inputs} or not all(inputs.values()):
        fail(f"name one KEY=FOLDER for each of: {', '.join(dict.fromkeys(each.key for each in contract.inputs))}")
    if not case.replace("_", "").replace("-", "").isalnum() or not case.isascii():
        fail(f"{case!a} is not a name for a case: letters, digits, _ and -")
    with check.processes(Limits(sandbox=folders.sandbox)) as models:
        typer.echo(f"wrote {check.freeze(contract, models, case, inputs, modality)}")


@models_app.command("remove")
def models_remove(name: Name, config: Config = None) -> None:
    """Remove a model that no rule names."""
    from meddaemon.deploy import registry  # noqa: PLC0415  as above

    folders = _folders(config)
    registry.remove(name, folders.directories, folders.named, folders.records)
    typer.echo(f"removed {name}")


@models_app.command("audit")
def models_audit(
    model: Annotated[str, typer.Argument(help="Name of a model, or a folder.")], config: Config = None
) -> None:
    """List what in a bundle reaches beyond MONAI, torch and NumPy, without running any of it."""
    from meddaemon.deploy import audit, registry  # noqa: PLC0415  as above

    try:
        bundle = registry.bundle_of(model, _folders(config).directories)
    except NotFound:
        bundle = Path(model)
        if not bundle.is_dir():
            raise
    findings = audit.audit(bundle)
    for finding in findings:
        typer.echo(f"{finding.kind.value}: {shown(finding.said)}")
    typer.echo(f"{len(findings)} findings" if findings else "nothing leaves MONAI, torch and NumPy")
    if any(each.kind is audit.Kind.HOSTILE for each in findings):
        raise typer.Exit(FAILED)


def _promises(contract: ModelContract) -> Iterator[str]:
    """Yield what a model takes, and what it says."""
    for each in contract.inputs:
        yield f"takes {each.slot}: {each.kind.value}"
    for segment in contract.segments:
        yield f"draws {segment.label} {segment.name} {_code(segment.type)}"
    for answer in contract.classes:
        yield f"tells {answer.name} {_code(answer.finding)}"
    for found in contract.objects:
        yield f"finds {found.label} {found.name} {_code(found.finding)}"
    numbers: tuple[ScoreContract | FormulaContract, ...] = (*contract.scores, *contract.formulas)
    for number in numbers:
        yield f"measures {number.name.meaning} {_code(number.name)} in {number.unit.value}"


def _code(code: Code) -> str:
    return f"({code.value} {code.scheme})"


def _say(line: str) -> None:
    typer.echo(shown(line))


def _folders(config: Path | None) -> ModelFolders:
    return load_model_folders(config, os.environ)
