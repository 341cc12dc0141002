"""All settings: `config/meddaemon.toml` and the environment, checked once, every problem at once.

Each key is explained in `config/meddaemon.toml`: default, unit and reason.
"""

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from meddaemon.config import environment, toml_file
from meddaemon.config.admission import admitted
from meddaemon.config.conditions import COMPUTED_ATTRIBUTES, parse_condition
from meddaemon.config.contracts import find_contracts, load_contract, model_names
from meddaemon.config.custody import CustodySettings, check_announced, check_custody, check_reporters
from meddaemon.config.destinations import MESSAGE_FILES, DestinationSettings, check_destination
from meddaemon.config.digest import RECORDS_NAME
from meddaemon.config.problems import Problems, did_you_mean, frozen, tables, texts
from meddaemon.config.requirements import parse_requirement
from meddaemon.config.section import AeTitle, Count, File, Folder, Host, Name, Network, Seconds, Section
from meddaemon.config.toml_file import Keys
from meddaemon.domain.completeness import Requirement, WhenIncomplete
from meddaemon.domain.conditions import ALWAYS, Condition
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.outlet import Edition, ObjectKind, Outlet
from meddaemon.domain.rules import Rule
from meddaemon.domain.schedule import WhenLate, Window, parse_times
from meddaemon.domain.series import SeriesKind

DATABASE_NAME = "meddaemon.sqlite"
"""File of the default database, in the store directory."""


def _database_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if text and (not separator or scheme not in ("sqlite", "postgresql", "postgresql+psycopg")):
        # The URL itself may hold a password and is not quoted.
        raise ValueError("must begin with sqlite:///, postgresql:// or postgresql+psycopg://")
    if scheme == "sqlite" and rest.lstrip("/") in ("", ":memory:"):
        raise ValueError("must name a file: the processes of the daemon share the database")
    return text


def _times(text: str) -> str:
    parse_times(text)
    return text


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        # OSError: what is a folder of the time zone database, such as "Europe".
        raise ValueError(f'{name!r} is no time zone such as "Europe/Berlin", or this machine has no tzdata') from error
    return name


def _journal_bytes(size: int) -> int:
    if size != 0 and size < _SMALLEST_JOURNAL:
        raise ValueError(f"0 (no journal) or at least {_SMALLEST_JOURNAL:_}")
    return size


_SMALLEST_JOURNAL = 67_108_864


class StoreSettings(Section):
    """Where received instances lie."""

    directory: Folder = Path("meddaemon-data")
    minimum_free_bytes: Annotated[int, Field(ge=0)] = 2_000_000_000
    journal_bytes: Annotated[int, AfterValidator(_journal_bytes)] = 536_870_912

    @property
    def instances(self) -> Path:
        """Folder of the received instances, content-addressed."""
        return self.directory / "instances"

    @property
    def results(self) -> Path:
        """Folder of the result objects, content-addressed."""
        return self.directory / "results"


class DatabaseSettings(Section):
    """Which database; the URL may hold a password, so it is left out of every representation."""

    url: Annotated[str, Field(repr=False), AfterValidator(_database_url)] = ""


class ListenerSettings(Section):
    """The SCP that receives studies."""

    ae_title: AeTitle = "MEDDAEMON"
    labels: dict[AeTitle, Name] = Field(default_factory=dict)
    accept: Literal["everyone", "listed"] = "everyone"
    transports: Annotated[tuple[Literal["plain", "tls"], ...], Field(min_length=1)] = ("plain",)
    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    tls_port: Annotated[int, Field(ge=0, le=65535)] = 2762
    processes: Count = 1
    maximum_associations: Count = 20
    maximum_pdu: Annotated[int, Field(ge=4096, le=2**32 - 1)] = 131_072
    maximum_object_bytes: Annotated[int, Field(ge=2**20)] = 8_589_934_592
    association_timeout_seconds: Seconds = 30.0
    idle_timeout_seconds: Seconds = 60.0
    caller_bytes_per_day: Annotated[int, Field(ge=0)] = 0

    @field_validator("processes")
    @classmethod
    def _on_one_port(cls, processes: int, info: ValidationInfo) -> int:
        if processes > 1 and info.data.get("port") == 0:
            raise ValueError("several processes need one port to share: set listener.port")
        return processes

    @property
    def ae_titles(self) -> tuple[str, ...]:
        """Every AE title that we have."""
        return tuple(dict.fromkeys((self.ae_title, *self.labels)))


class TlsSettings(Section):
    """Who we are by TLS, and who vouches for others: PEM files, absolute once they are loaded."""

    certificate: File = ""
    key: File = ""
    ca: File = ""
    client_certificates: Literal["required", "optional"] = "required"


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?", text):
        raise ValueError(f'{text!r} is no origin such as "https://viewer.example.org"')
    return text


def _public_url(text: str) -> str:
    if text and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?", text):
        raise ValueError(f'{text!r} is no URL such as "https://pacs.example.org/dicom-web"')
    return text


def _token_digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        # It may be the token itself and is not quoted.
        raise ValueError("must be the SHA-256 of the token, 64 digits 0-9a-f: printf %s TOKEN | sha256sum")
    return text


TokenDigest = Annotated[str, AfterValidator(_token_digest)]


class WebSettings(Section):
    """The HTTP server. `tokens`: name of a sender -> SHA-256 of its bearer token, which alone says nothing.

    `readers` likewise: who may search and retrieve, which is another right.
    """

    enabled: bool = False
    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8104
    tokens: dict[AeTitle, TokenDigest] = Field(default_factory=dict)
    readers: dict[AeTitle, TokenDigest] = Field(default_factory=dict)
    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    public_url: Annotated[str, AfterValidator(_public_url)] = ""
    certificate: str = ""
    private_key: str = ""
    ae_title: AeTitle = "MEDDAEMON"
    maximum_connections: Count = 100
    maximum_uploads: Count = 16
    maximum_reads: Count = 32
    maximum_matches: Annotated[int, Field(ge=1, le=10_000)] = 1000
    maximum_object_bytes: Count = 2**31
    maximum_request_bytes: Count = 2**36
    request_timeout_seconds: Seconds = 30.0
    idle_timeout_seconds: Seconds = 60.0


class CompletenessSettings(Section):
    """When a study counts as complete, and is sound enough to be worked on."""

    quiet_seconds: Annotated[float, Field(ge=0)] = 30.0
    hold_unidentified: bool = True
    maximum_wait_seconds: Annotated[float, Field(ge=0)] = 3600.0
    when_incomplete: Annotated[WhenIncomplete, Field(strict=False)] = WhenIncomplete.RUN


class WorkerSettings(Section):
    """How jobs are worked on."""

    concurrency: Count = 1
    gpus: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")], ...] = ("all",)
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    scratch_bytes: Annotated[int, Field(ge=2**20)] = 8_589_934_592
    sandbox: Literal["required", "preferred", "off"] = "required"
    lease_seconds: Seconds = 60.0
    heartbeat_seconds: Seconds = 15.0
    maximum_attempts: Count = 3
    backoff_seconds: Seconds = 10.0
    poll_seconds: Seconds = 1.0
    prefetch: bool = True
    preprocess_ahead: Literal["gpu", "always", "never"] = "gpu"
    batch_jobs: Count = 8
    ageing_seconds: Seconds = 1800.0


class DeliverySettings(Section):
    """The SCU that sends results.

    `charset` is that of results: ISO_IR 192, or that of their source where it has all of their text.
    """

    ae_title: AeTitle = "MEDDAEMON"
    charset: Literal["utf-8", "source"] = "utf-8"
    lease_seconds: Seconds = 300.0
    backoff_seconds: Seconds = 10.0
    maximum_backoff_seconds: Seconds = 3600.0
    poll_seconds: Seconds = 1.0
    connection_timeout_seconds: Seconds = 10.0
    association_timeout_seconds: Seconds = 30.0
    dimse_timeout_seconds: Seconds = 60.0
    minimum_bytes_per_second: Annotated[float, Field(gt=0)] = 10_000.0
    batch_seconds: Seconds = 3600.0


class LoggingSettings(Section):
    """What is logged to standard error, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class ModelsSettings(Section):
    """Where model contracts lie, and which are loaded although no rule names them."""

    directories: tuple[Folder, ...] = ()
    enabled: tuple[str, ...] = ()


class PeerSettings(Section):
    """One AE that we know: how it may call us, and where it listens, if it does (else "" and 0)."""

    ae_title: AeTitle
    addresses: tuple[Network, ...] = ()
    called_ae_titles: tuple[AeTitle, ...] = ()
    ca: File = ""
    host: Annotated[str, Field(max_length=253, pattern=r"^[^\s/]*$")] = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    tls: bool = False
    query: bool = False


class WindowSettings(Section):
    """One window as it is written; `meddaemon.domain.schedule.Window` is what it becomes."""

    name: Name
    times: Annotated[tuple[Annotated[str, AfterValidator(_times)], ...], Field(min_length=1)]
    time_zone: Annotated[str, AfterValidator(_time_zone)]


class RuleSettings(Section):
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
    requires: str = ""
    required_series: Any = None
    maximum_wait_seconds: Annotated[float, Field(ge=0)] | None = None
    when_incomplete: Annotated[WhenIncomplete, Field(strict=False)] | None = None
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    window: str = ""
    deadline_seconds: Seconds | None = None
    when_late: Annotated[WhenLate, Field(strict=False)] = WhenLate.RUN


class Document(Section):
    """The whole configuration file."""

    store: StoreSettings = StoreSettings()
    database: DatabaseSettings = DatabaseSettings()
    listener: ListenerSettings = ListenerSettings()
    tls: TlsSettings = TlsSettings()
    web: WebSettings = WebSettings()
    completeness: CompletenessSettings = CompletenessSettings()
    worker: WorkerSettings = WorkerSettings()
    delivery: DeliverySettings = DeliverySettings()
    custody: CustodySettings = CustodySettings()
    logging: LoggingSettings = LoggingSettings()
    models: ModelsSettings = ModelsSettings()
    destinations: tuple[DestinationSettings, ...] = ()
    peers: tuple[PeerSettings, ...] = ()
    windows: tuple[WindowSettings, ...] = ()
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
    tls: TlsSettings
    web: WebSettings
    completeness: CompletenessSettings
    worker: WorkerSettings
    delivery: DeliverySettings
    custody: CustodySettings = field(default_factory=CustodySettings)
    logging: LoggingSettings
    models: ModelsSettings
    destinations: tuple[DestinationSettings, ...] = ()
    peers: tuple[PeerSettings, ...] = ()
    windows: tuple[Window, ...] = ()
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
            asked |= rule.requires.keywords() if rule.requires else frozenset()
        for contract in self.contracts.values():
            for wanted in contract.inputs:
                asked |= wanted.series.keywords().union(*(each.keywords() for each in wanted.prefer))
        return frozenset(asked - COMPUTED_ATTRIBUTES)

    @property
    def listening_peers(self) -> tuple[PeerSettings, ...]:
        """The peers that can be told something: those whose host and port we know."""
        return tuple(peer for peer in self.peers if peer.host)

    @property
    def admitted(self) -> dict[str, ModelContract]:
        """The models that are given work."""
        return {name: each for name, each in self.contracts.items() if not each.admission.refusal}

    @property
    def shortest_quiet_seconds(self) -> float:
        """The quiet time after which the first rule is asked."""
        own = [rule.quiet_seconds for rule in self.rules if rule.quiet_seconds is not None]
        return min((*own, self.completeness.quiet_seconds))

    @cached_property
    def outlets(self) -> dict[str, Outlet]:
        """What each destination takes."""
        return {each.name: each.outlet for each in self.destinations}

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What is made of every result: what any destination takes, and what a result always has."""
        wanted = (kind for outlet in self.outlets.values() for kind in outlet.kinds)
        return frozenset({ObjectKind.SEG, ObjectKind.SR, *wanted})

    @cached_property
    def editions(self) -> tuple[Edition, ...]:
        """The editions that are made of every result: those that any destination may be given."""
        return tuple(
            dict.fromkeys((Edition(), *(each for outlet in self.outlets.values() for each in outlet.editions)))
        )

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
    data, problems = _read(path, environ)
    # What belongs together is checked on the raw values, so that it is reported together with what is misshapen.
    conditions = {index: _conditions(rule, ("rules", index), problems) for index, rule in tables(data.get("rules"))}
    places = _Places(data, problems)
    contracts = _contracts(_named_models(data), places.directories, places.store / RECORDS_NAME, problems)
    _check_web(data, problems)
    _check_numbers(data, problems)
    _check_names(data, problems)
    try:
        document = Document.model_validate(frozen(data))
    except ValidationError as error:
        problems.add_invalid(error, Document)
        raise problems.error from error
    _check_callers(document, problems)
    check_announced(document.destinations, frozenset(peer.ae_title for peer in document.peers if peer.host), problems)
    check_reporters(
        document.destinations,
        frozenset(peer.ae_title for peer in document.peers),
        problems,
        listed=document.listener.accept == "listed",
    )
    _check_tls(document, problems)
    problems.raise_if_any()
    tls = document.tls.model_copy(
        update={key: places.file(getattr(document.tls, key), ("tls", key)) for key in ("certificate", "key", "ca")}
    )
    return Settings(
        store=document.store.model_copy(update={"directory": places.store}),
        database=document.database.model_copy(update={"url": places.url(document.database.url)}),
        listener=document.listener,
        tls=tls,
        web=document.web.model_copy(update=places.tls),
        completeness=document.completeness,
        worker=document.worker,
        delivery=document.delivery,
        custody=document.custody,
        logging=document.logging,
        models=document.models.model_copy(update={"directories": tuple(places.directories)}),
        destinations=tuple(
            each.model_copy(
                update={
                    key: places.file(getattr(each, key), ("destinations", index, key))
                    for key in ("ca", "token_file", "password_file", "directory", *MESSAGE_FILES)
                }
            )
            for index, each in enumerate(document.destinations)
        ),
        peers=tuple(
            each.model_copy(update={"ca": places.file(each.ca, ("peers", index, "ca"))})
            for index, each in enumerate(document.peers)
        ),
        windows=tuple(_window(each) for each in document.windows),
        rules=tuple(_rule(rule, *conditions[index]) for index, rule in enumerate(document.rules) if rule.enabled),
        contracts=contracts,
        file=problems.file.path.resolve() if problems.file else None,
        warnings=(
            *_refused(contracts, _named_models(data), problems),
            *_open_doors(document, problems),
            *_readable_by_all(document.database.url, tls.key, problems),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ModelFolders:
    """Where models lie, which of them rules or `models.enabled` name, and how their processes are confined.

    `records` is where this installation keeps what their checks found.
    """

    directories: tuple[Path, ...]
    records: Path
    named: frozenset[str]
    sandbox: str


def load_model_folders(path: Path | None, environ: Mapping[str, str]) -> ModelFolders:
    """Read only where models lie, as `load` does: nothing else that is wrong keeps anybody from mending a model.

    Raises InvalidConfiguration.
    """
    data, problems = _read(path, environ)
    places = _Places(data, problems)
    return ModelFolders(
        directories=tuple(places.directories),
        records=places.store / RECORDS_NAME,
        named=frozenset(_named_models(data).values()),
        sandbox=str(_raw(data, "worker", "sandbox")),
    )


def _read(path: Path | None, environ: Mapping[str, str]) -> tuple[dict[str, Any], Problems]:
    """Return what file and environment say, unchecked, and where to say what is wrong with it."""
    named = environ.get(environment.CONFIG_VARIABLE)
    file = path or (Path(named) if named else None)
    source = toml_file.read(file) if file else None
    problems = Problems(source)
    problems.variables = environment.variables(environ, Document, problems)
    data = source.data if source else {}
    environment.overlay(data, Document, problems.variables, environ)
    return data, problems


class _Places:
    """The folders that the configuration names, resolved and looked at."""

    def __init__(self, data: Mapping[str, Any], problems: Problems) -> None:
        self._data = data
        self._problems = problems
        keys: Keys = ("store", "directory")
        directory = _raw(data, "store", "directory")
        self.store = self._resolved(directory if isinstance(directory, str | Path) else "", keys)
        if self.store.exists() and not self.store.is_dir():
            problems.add(keys, f"{self.store} is not a directory")
        keys = ("models", "directories")
        self.directories = [self._resolved(text, keys) for _, text in texts(_raw(data, *keys))]
        for (index, _), folder in zip(texts(_raw(data, *keys)), self.directories, strict=True):
            if not folder.is_dir():
                problems.add((*keys, index), f"{folder} is not a directory")
        self.tls = {key: self._file(("web", key)) for key in ("certificate", "private_key")}

    def _file(self, keys: tuple[str, str]) -> str:
        """Return the absolute name of a file that must be there; "" where none is named."""
        name = _raw(self._data, *keys)
        if not name or not isinstance(name, str):
            return ""
        file = self._resolved(name, keys)
        if not file.is_file():
            self._problems.add(keys, f"{file} is not a file")
        return str(file)

    def url(self, url: str) -> str:
        """Return the database URL with an absolute file; by default a SQLite file in the store directory."""
        if not url:
            return f"sqlite:///{self.store / DATABASE_NAME}"
        if url.startswith("sqlite:///"):
            file, question_mark, options = url.removeprefix("sqlite:///").partition("?")
            return f"sqlite:///{self._resolved(file, ('database', 'url'))}{question_mark}{options}"
        return url

    def file(self, text: str, keys: Keys) -> str:
        """Return the absolute path of a file, "" where none is named."""
        return str(self._resolved(text, keys)) if text else ""

    def _resolved(self, path: str | Path, keys: Keys) -> Path:
        in_file = self._problems.file is not None and not self._problems.variable_of(keys)
        base = self._problems.file.path.parent if self._problems.file and in_file else Path.cwd()
        try:
            return (base / Path(path).expanduser()).resolve()
        except (RuntimeError, ValueError) as error:
            # A home of nobody, a null character.
            self._problems.add(keys, f"is not a path: {error}")
            return base


def _raw(data: Mapping[str, Any], section: str, key: str) -> object:
    """Return a setting as it is written, or its default."""
    table = data.get(section)
    if isinstance(table, Mapping) and key in table:
        return table[key]
    return getattr(getattr(Document(), section), key)


def _conditions(
    rule: Mapping[str, object], keys: Keys, problems: Problems
) -> tuple[Condition, Condition, Requirement | None]:
    """Return the study and the series condition of a rule, and the series that it requires."""
    study, series = (
        parse_condition(rule[name], (*keys, name), problems) if name in rule else ALWAYS for name in ("study", "series")
    )
    return study, series, parse_requirement(rule, keys, problems)


def _rule(rule: RuleSettings, study: Condition, series: Condition, requires: Requirement | None) -> Rule:
    return Rule(
        name=rule.name,
        models=rule.models,
        destinations=rule.destinations,
        study=study,
        series=series,
        admit=frozenset(rule.admit),
        quiet_seconds=rule.quiet_seconds,
        requires=requires,
        maximum_wait_seconds=rule.maximum_wait_seconds,
        when_incomplete=rule.when_incomplete,
        priority=rule.priority,
        window=rule.window,
        deadline_seconds=rule.deadline_seconds,
        when_late=rule.when_late,
        fallback=rule.fallback,
    )


def _window(window: WindowSettings) -> Window:
    spans = tuple(span for times in window.times for span in parse_times(times))
    return Window(name=window.name, spans=spans, zone=ZoneInfo(window.time_zone))


def _check_web(data: Mapping[str, Any], problems: Problems) -> None:
    """Check that nobody but this machine's own users may store without a token."""
    host = _raw(data, "web", "host")
    if isinstance(host, str) and not _is_loopback(host) and not _raw(data, "web", "tokens"):
        problems.add(("web", "host"), f"{host} is open to others: without tokens they could all store; set web.tokens")
    if _raw(data, "web", "private_key") and not _raw(data, "web", "certificate"):
        problems.add(("web", "private_key"), "there is no certificate that it belongs to")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_numbers(data: Mapping[str, Any], problems: Problems) -> None:
    # A heartbeat may fail twice before somebody else takes the job.
    _check_at_most(data, "worker", "heartbeat_seconds", "lease_seconds", problems, third=True)
    _check_at_most(data, "delivery", "backoff_seconds", "maximum_backoff_seconds", problems)


def _check_at_most(
    data: Mapping[str, Any], section: str, less: str, more: str, problems: Problems, *, third: bool = False
) -> None:
    small, large = _raw(data, section, less), _raw(data, section, more)
    if not isinstance(small, int | float) or not isinstance(large, int | float):
        return
    if small > (large / 3 if third else large):
        written = less if less in data.get(section, {}) else more
        limit = "a third of " if third else ""
        problems.add((section, written), f"{less} ({small:g}) must be at most {limit}{more} ({large:g})")


def _check_names(data: Mapping[str, Any], problems: Problems) -> None:
    """Check that names are unique, and that what rules name is there."""
    destinations, rules = tables(data.get("destinations")), tables(data.get("rules"))
    peers, windows = tables(data.get("peers")), tables(data.get("windows"))
    for array, key, elements in (
        ("destinations", "name", destinations),
        ("peers", "ae_title", peers),
        ("windows", "name", windows),
        ("rules", "name", rules),
    ):
        first: dict[object, int] = {}
        for index, element in elements:
            name = str(element.get(key))
            if key in element and first.setdefault(name, index) != index:
                problems.add((array, index, key), f"{name!r} is the {key} of {array}[{first[name]}] already")
    names = [str(each.get("name")) for _, each in destinations]
    for index, rule in rules:
        for place, name in texts(rule.get("destinations")):
            if name not in names:
                message = f"there is no destination {name!r}{did_you_mean(name, names)}"
                problems.add(("rules", index, "destinations", place), message)
        _check_window(rule, ("rules", index), windows, problems)
        if rule.get("when_late") == WhenLate.DISCARD and "deadline_seconds" not in rule:
            problems.add(("rules", index, "when_late"), "nothing is late without deadline_seconds")
    own_hosts = {_raw(data, "listener", "host"), "127.0.0.1", "localhost", "::1"}
    for index, each in destinations:
        check_destination(each, ("destinations", index), problems)
        check_custody(each, ("destinations", index), problems)
        _check_window(each, ("destinations", index), windows, problems)
        if each.get("port") == _raw(data, "listener", "port") and each.get("host") in own_hosts:
            message = f"{each.get('host')}:{each.get('port')} is this daemon's own listener"
            problems.add(("destinations", index, "port"), message)


def _check_window(
    table: Mapping[str, Any], keys: Keys, windows: Iterable[tuple[int, Mapping[str, Any]]], problems: Problems
) -> None:
    window, known = table.get("window", ""), [str(each.get("name")) for _, each in windows]
    if isinstance(window, str) and window and window not in known:
        problems.add((*keys, "window"), f"there is no window {window!r}{did_you_mean(window, known)}")


def _check_callers(document: Document, problems: Problems) -> None:
    """Check what peers say against what the listener says."""
    listener = document.listener
    for index, peer in enumerate(document.peers):
        keys: Keys = ("peers", index)
        if bool(peer.host) is not bool(peer.port):
            problems.add(keys, "needs host and port, or neither")
        for place, ae_title in enumerate(peer.called_ae_titles):
            if ae_title not in listener.ae_titles:
                hint = did_you_mean(ae_title, listener.ae_titles)
                message = f"{ae_title!r} is neither the listener's ae_title nor among its labels{hint}"
                problems.add((*keys, "called_ae_titles", place), message)
        if peer.ca and "tls" not in listener.transports:
            problems.add((*keys, "ca"), 'asks for a certificate, and listener.transports has no "tls"')


def _check_tls(document: Document, problems: Problems) -> None:
    """Check that TLS, where it is asked for, has the files that it needs."""
    tls = document.tls
    if "tls" in document.listener.transports:
        for key in ("certificate", "key"):
            if not getattr(tls, key):
                problems.add(("listener", "transports"), f"TLS needs tls.{key}")
        if tls.client_certificates == "required" and not tls.ca and not any(peer.ca for peer in document.peers):
            problems.add(("listener", "transports"), "TLS needs tls.ca: nobody vouches for those who call")
    if bool(tls.certificate) is not bool(tls.key):
        problems.add(("tls",), "needs certificate and key, or neither")
    callees: dict[str, tuple[DestinationSettings | PeerSettings, ...]] = {
        "destinations": document.destinations,
        "peers": document.peers,
    }
    for array, elements in callees.items():
        for index, each in enumerate(elements):
            if each.tls and not (each.ca or tls.ca):
                problems.add((array, index, "tls"), "needs tls.ca or a ca of its own: nobody vouches for this peer")


def _named_models(data: Mapping[str, Any]) -> dict[Keys, str]:
    """Return where each model is named -> its name; rules that are not enabled ask for nothing."""
    named: dict[Keys, str] = {
        ("models", "enabled", place): name for place, name in texts(_raw(data, "models", "enabled"))
    }
    for index, rule in tables(data.get("rules")):
        if rule.get("enabled", True) is not False:
            named |= {("rules", index, "models", place): name for place, name in texts(rule.get("models"))}
    return named


def _contracts(
    named: Mapping[Keys, str], directories: Sequence[Path], records: Path, problems: Problems
) -> dict[str, ModelContract]:
    """Return the contract of every model that is named, admitted by what `records` hold."""
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
                contracts[name] = admitted(load_contract(files[0], records))
            except InvalidConfiguration as error:
                problems.add_all(error.problems)
                continue
            if contracts[name].name != name:
                problems.add(keys, f"the contract {files[0]} is of a model named {contracts[name].name!r}")
    return contracts


def _refused(contracts: Mapping[str, ModelContract], named: Mapping[Keys, str], problems: Problems) -> Iterable[str]:
    for name, contract in contracts.items():
        if contract.admission.refusal:
            keys = next(keys for keys, each in named.items() if each == name)
            yield f"{problems.where(keys)}: model {name!r} gets no work: {contract.admission.refusal}"


def _open_doors(document: Document, problems: Problems) -> Iterable[str]:
    listener = document.listener
    proven = listener.transports == ("tls",) and document.tls.client_certificates == "required"
    if listener.accept == "everyone" and not proven and not _is_loopback(listener.host):
        keys: Keys = ("listener", "host" if problems.variable_of(("listener", "host")) else "accept")
        yield (
            f"{problems.where(keys)}: everyone who reaches {listener.host} may send studies; "
            'list who may in [[peers]] and set accept = "listed"'
        )
    if document.web.enabled and not _is_loopback(document.web.host) and not document.web.certificate:
        yield (
            f"{problems.where(('web', 'host'))}: tokens and patient data travel in clear text; set web.certificate, "
            "unless a proxy on this machine speaks TLS"
        )


def _readable_by_all(url: str, key: str, problems: Problems) -> Iterable[str]:
    if key and Path(key).is_file() and Path(key).stat().st_mode & stat.S_IROTH:
        yield f"{problems.where(('tls', 'key'))}: every user of this machine may read {key}; chmod o-r it"
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
