"""All settings: `config/meddaemon.toml` and the environment, checked once, every problem at once.

Each key is explained in `config/meddaemon.toml`: default, unit and reason.
"""

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from meddaemon.config import environment, toml_file
from meddaemon.config.conditions import COMPUTED_ATTRIBUTES, parse_condition
from meddaemon.config.contracts import find_contracts, load_contract, model_names
from meddaemon.config.problems import Problems, did_you_mean, frozen
from meddaemon.config.toml_file import Keys
from meddaemon.domain.conditions import ALWAYS, Condition
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.rules import Rule
from meddaemon.domain.series import SeriesKind

DATABASE_NAME = "meddaemon.sqlite"
"""File of the default database, in the store directory."""


def _ae_title(text: str) -> str:
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", text) or text != text.strip():
        raise ValueError(
            f"{text!r} is not an AE title: 1 to 16 ASCII characters, no backslash, no outer spaces (PS3.5 6.2)"
        )
    return text


def _database_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if text and (not separator or scheme not in ("sqlite", "postgresql", "postgresql+psycopg")):
        # The URL itself may hold a password and is not quoted.
        raise ValueError("must begin with sqlite:///, postgresql:// or postgresql+psycopg://")
    if scheme == "sqlite" and rest.lstrip("/") in ("", ":memory:"):
        raise ValueError("must name a file: the processes of the daemon share the database")
    return text


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Host = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[^\s/]+$")]
Name = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Folder = Annotated[Path, Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StoreSettings(_Section):
    """Where received instances lie."""

    directory: Folder = Path("meddaemon-data")
    minimum_free_bytes: Annotated[int, Field(ge=0)] = 2_000_000_000

    @property
    def instances(self) -> Path:
        """Folder of the received instances, content-addressed."""
        return self.directory / "instances"

    @property
    def results(self) -> Path:
        """Folder of the result objects, content-addressed."""
        return self.directory / "results"


class DatabaseSettings(_Section):
    """Which database; the URL may hold a password, so it is left out of every representation."""

    url: Annotated[str, Field(repr=False), AfterValidator(_database_url)] = ""


class ListenerSettings(_Section):
    """The SCP that receives studies."""

    ae_title: AeTitle = "MEDDAEMON"
    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    maximum_associations: Count = 20
    maximum_pdu: Annotated[int, Field(ge=4096, le=2**32 - 1)] = 131_072
    association_timeout_seconds: Seconds = 30.0
    idle_timeout_seconds: Seconds = 60.0
    require_called_ae_title: bool = False
    accept_calling_ae_titles: tuple[AeTitle, ...] = ()


class CompletenessSettings(_Section):
    """When a study counts as complete."""

    quiet_seconds: Annotated[float, Field(ge=0)] = 30.0


class WorkerSettings(_Section):
    """How jobs are worked on."""

    concurrency: Count = 1
    lease_seconds: Seconds = 60.0
    heartbeat_seconds: Seconds = 15.0
    maximum_attempts: Count = 3
    backoff_seconds: Seconds = 10.0
    poll_seconds: Seconds = 1.0


class DeliverySettings(_Section):
    """The SCU that sends results."""

    ae_title: AeTitle = "MEDDAEMON"
    concurrency: Count = 2
    lease_seconds: Seconds = 300.0
    backoff_seconds: Seconds = 10.0
    maximum_backoff_seconds: Seconds = 3600.0
    poll_seconds: Seconds = 1.0
    connection_timeout_seconds: Seconds = 10.0
    association_timeout_seconds: Seconds = 30.0
    dimse_timeout_seconds: Seconds = 60.0


class LoggingSettings(_Section):
    """What is logged to standard error, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class ModelsSettings(_Section):
    """Where model contracts lie, and which are loaded although no rule names them."""

    directories: tuple[Folder, ...] = ()
    enabled: tuple[str, ...] = ()


class DestinationSettings(_Section):
    """One peer that results are sent to. `objects` names the encoders whose objects it gets."""

    name: Name
    kind: Literal["dicom"] = "dicom"
    ae_title: AeTitle
    host: Host
    port: Port
    objects: Annotated[tuple[Literal["SEG", "SR"], ...], Field(min_length=1)] = ("SEG", "SR")


class RuleSettings(_Section):
    """One rule as it is written; `meddaemon.domain.rules.Rule` is what it becomes."""

    name: Name
    enabled: bool = True
    fallback: bool = False
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    destinations: tuple[str, ...] = ()
    study: Any = None
    series: Any = None
    admit: tuple[Annotated[SeriesKind, Field(strict=False)], ...] = ()
    quiet_seconds: Annotated[float, Field(ge=0)] | None = None
    priority: Annotated[int, Field(ge=0, le=9)] = 5


class Document(_Section):
    """The whole configuration file."""

    store: StoreSettings = StoreSettings()
    database: DatabaseSettings = DatabaseSettings()
    listener: ListenerSettings = ListenerSettings()
    completeness: CompletenessSettings = CompletenessSettings()
    worker: WorkerSettings = WorkerSettings()
    delivery: DeliverySettings = DeliverySettings()
    logging: LoggingSettings = LoggingSettings()
    models: ModelsSettings = ModelsSettings()
    destinations: tuple[DestinationSettings, ...] = ()
    rules: tuple[RuleSettings, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the whole daemon runs on: sections as they are written, paths resolved, rules and contracts as values.

    `rules` are the enabled ones in the order of the file, `contracts` the models that they and `models.enabled`
    name, `warnings` what is allowed but unwise (`file:line: ...`); `file` is where all this was read.
    """

    store: StoreSettings
    database: DatabaseSettings
    listener: ListenerSettings
    completeness: CompletenessSettings
    worker: WorkerSettings
    delivery: DeliverySettings
    logging: LoggingSettings
    models: ModelsSettings
    destinations: tuple[DestinationSettings, ...] = ()
    rules: tuple[Rule, ...] = ()
    contracts: Mapping[str, ModelContract] = field(default_factory=dict)
    file: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def keywords(self) -> frozenset[str]:
        """The DICOM attributes that a rule or a model asks for, without the computed ones."""
        asked: set[str] = set()
        for rule in self.rules:
            asked |= rule.study.keywords() | rule.series.keywords()
        for contract in self.contracts.values():
            for wanted in contract.inputs:
                asked |= wanted.series.keywords().union(*(each.keywords() for each in wanted.prefer))
        return frozenset(asked - COMPUTED_ATTRIBUTES)

    @property
    def shortest_quiet_seconds(self) -> float:
        """The quiet time after which the first rule is asked."""
        own = [rule.quiet_seconds for rule in self.rules if rule.quiet_seconds is not None]
        return min((*own, self.completeness.quiet_seconds))

    def object_kinds(self, destinations: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the kinds of result object that each of these destinations takes; unknown names are left out."""
        known = {each.name: each.objects for each in self.destinations}
        return {name: known[name] for name in destinations if name in known}

    def destination(self, name: str) -> DestinationSettings:
        """Return the destination of that name; rules name only those that exist."""
        return next(each for each in self.destinations if each.name == name)


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the settings from `path`, else from the file that MEDDAEMON_CONFIG names, else take the defaults.

    Variables such as MEDDAEMON_LISTENER__PORT go over the file. Relative paths are resolved against the folder of
    the file; those of variables, and all without a file, against the working directory.

    Raises InvalidConfiguration with every problem, each `file:line: section.key: what is wrong` or
    `VARIABLE: what is wrong`.
    """
    named = environ.get(environment.CONFIG_VARIABLE)
    file = path or (Path(named) if named else None)
    source = toml_file.read(file) if file else None
    problems = Problems(source)
    problems.variables = environment.variables(environ, Document, problems)
    data = source.data if source else {}
    environment.overlay(data, Document, problems.variables, environ)
    conditions = _conditions(data.get("rules"), problems)
    try:
        document = Document.model_validate(frozen(data))
    except ValidationError as error:
        problems.add_invalid(error, Document)
        raise problems.error from error
    paths = _Paths(problems)
    store = document.store.model_copy(
        update={"directory": paths.resolved(document.store.directory, ("store", "directory"))}
    )
    models = document.models.model_copy(
        update={"directories": tuple(paths.folders(document.models.directories, ("models", "directories")))}
    )
    database = document.database.model_copy(update={"url": _url(document.database.url, store.directory, paths)})
    _check_numbers(document, data, problems)
    _check_unique("destinations", [each.name for each in document.destinations], problems)
    _check_unique("rules", [each.name for each in document.rules], problems)
    _check_destinations(document, problems)
    if store.directory.exists() and not store.directory.is_dir():
        problems.add(("store", "directory"), f"{store.directory} is not a directory")
    contracts = _contracts(_named_models(document), models.directories, problems)
    problems.raise_if_any()
    return Settings(
        store=store,
        database=database,
        listener=document.listener,
        completeness=document.completeness,
        worker=document.worker,
        delivery=document.delivery,
        logging=document.logging,
        models=models,
        destinations=document.destinations,
        rules=tuple(_rule(rule, *conditions[index]) for index, rule in enumerate(document.rules) if rule.enabled),
        contracts=contracts,
        file=file.resolve() if file else None,
        warnings=tuple(_warnings(database.url, problems)),
    )


@dataclass(frozen=True)
class _Paths:
    """Resolves the paths of the configuration against the folder of its file."""

    problems: Problems

    def resolved(self, path: Path, keys: Keys) -> Path:
        return (self._base(keys) / path.expanduser()).resolve()

    def folders(self, paths: Sequence[Path], keys: Keys) -> Iterable[Path]:
        for index, path in enumerate(paths):
            folder = self.resolved(path, (*keys, index))
            if not folder.is_dir():
                self.problems.add((*keys, index), f"{folder} is not a directory")
            yield folder

    def _base(self, keys: Keys) -> Path:
        if self.problems.file is None or self.problems.variable_of(keys):
            return Path.cwd()
        return self.problems.file.path.parent


def _url(url: str, store: Path, paths: _Paths) -> str:
    """Return the database URL with an absolute file; by default a SQLite file in the store directory."""
    if not url:
        return f"sqlite:///{store / DATABASE_NAME}"
    if url.startswith("sqlite:///"):
        file, question_mark, options = url.removeprefix("sqlite:///").partition("?")
        return f"sqlite:///{paths.resolved(Path(file), ('database', 'url'))}{question_mark}{options}"
    return url


def _conditions(raw: object, problems: Problems) -> dict[int, tuple[Condition, Condition]]:
    """Return the study and series condition of each rule; they are parsed before the rest has been checked."""
    conditions = {}
    for index, rule in enumerate(raw if isinstance(raw, list) else ()):
        table = rule if isinstance(rule, Mapping) else {}
        study, series = (
            parse_condition(table[key], ("rules", index, key), problems) if key in table else ALWAYS
            for key in ("study", "series")
        )
        conditions[index] = (study, series)
    return conditions


def _rule(rule: RuleSettings, study: Condition, series: Condition) -> Rule:
    return Rule(
        name=rule.name,
        models=rule.models,
        destinations=rule.destinations,
        study=study,
        series=series,
        admit=frozenset(rule.admit),
        quiet_seconds=rule.quiet_seconds,
        priority=rule.priority,
        fallback=rule.fallback,
    )


def _check_numbers(document: Document, data: Mapping[str, Any], problems: Problems) -> None:
    worker, delivery = document.worker, document.delivery
    if worker.heartbeat_seconds > worker.lease_seconds / 3:
        # A heartbeat may be missed twice before somebody else takes the job.
        written = "heartbeat_seconds" if "heartbeat_seconds" in data.get("worker", {}) else "lease_seconds"
        problems.add(
            ("worker", written),
            f"heartbeat_seconds ({worker.heartbeat_seconds:g}) must be at most a third of "
            f"lease_seconds ({worker.lease_seconds:g})",
        )
    if delivery.backoff_seconds > delivery.maximum_backoff_seconds:
        written = "backoff_seconds" if "backoff_seconds" in data.get("delivery", {}) else "maximum_backoff_seconds"
        problems.add(
            ("delivery", written),
            f"backoff_seconds ({delivery.backoff_seconds:g}) must be at most "
            f"maximum_backoff_seconds ({delivery.maximum_backoff_seconds:g})",
        )


def _check_unique(array: str, names: Sequence[str], problems: Problems) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            problems.add((array, index, "name"), f"{name!r} is the name of {array}[{names.index(name)}] already")


def _check_destinations(document: Document, problems: Problems) -> None:
    names = [each.name for each in document.destinations]
    for index, rule in enumerate(document.rules):
        for place, name in enumerate(rule.destinations):
            if name not in names:
                message = f"there is no destination {name!r}{did_you_mean(name, names)}"
                problems.add(("rules", index, "destinations", place), message)
    own_hosts = {document.listener.host, "127.0.0.1", "localhost", "::1"}
    for index, destination in enumerate(document.destinations):
        if destination.port == document.listener.port and destination.host in own_hosts:
            message = f"{destination.host}:{destination.port} is this daemon's own listener"
            problems.add(("destinations", index, "port"), message)


def _named_models(document: Document) -> dict[Keys, str]:
    """Return where each model is named -> its name; rules that are not enabled ask for nothing."""
    named: dict[Keys, str] = {}
    for index, name in enumerate(document.models.enabled):
        named["models", "enabled", index] = name
    for index, rule in enumerate(document.rules):
        if rule.enabled:
            for place, name in enumerate(rule.models):
                named["rules", index, "models", place] = name
    return named


def _contracts(named: Mapping[Keys, str], directories: Sequence[Path], problems: Problems) -> dict[str, ModelContract]:
    """Return the contract of every model that is named."""
    contracts: dict[str, ModelContract] = {}
    for keys, name in named.items():
        files = find_contracts(name, directories)
        if not files:
            hint = did_you_mean(name, model_names(directories))
            problems.add(keys, f"there is no model {name!r}{hint}")
        elif len(files) > 1:
            problems.add(keys, f"model {name!r} has more than one contract: {', '.join(map(str, files))}")
        elif name not in contracts:
            try:
                contracts[name] = load_contract(files[0])
            except InvalidConfiguration as error:
                problems.add_all(error.problems)
                continue
            if contracts[name].name != name:
                problems.add(keys, f"the contract {files[0]} is of a model named {contracts[name].name!r}")
    return contracts


def _warnings(url: str, problems: Problems) -> Iterable[str]:
    keys: Keys = ("database", "url")
    source = problems.file
    if source is None or keys in problems.variables or not re.search(r"://[^/@]*:[^/@]+@", url):
        return
    mode = source.path.stat().st_mode
    if mode & stat.S_IROTH:
        yield (
            f"{problems.where(keys)}: holds a password and every user of this machine may read the file "
            f"(mode {stat.S_IMODE(mode):o}); chmod o-r it, or set MEDDAEMON_DATABASE__URL instead"
        )
