"""Logs: one line per event on standard error, as JSON or text, in which nothing from outside can forge or leak.

- Every value is bounded in length and its control characters are escaped, so a hostile AE title is one line.
- Messages of libraries may quote values of a data set (pydicom's do), and so may messages of exceptions that are
  not ours: of those only the kind and the place in the code are logged. Errors of this project name no patient by
  rule (`domain/errors.py`), so their messages are kept.
"""

import json
import logging
import math
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO, TypeAlias

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from meddaemon.domain.errors import MeddaemonError

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Format: TypeAlias = Literal["json", "text"]

MAXIMUM_LENGTH = 500
"""Characters of one value that are kept."""

_MAXIMUM_ITEMS = 20
_MAXIMUM_DEPTH = 3
_MAXIMUM_FRAMES = 12
_MAXIMUM_PEERS = 1000
_QUIET_LIBRARIES = ("pydicom", "pynetdicom", "highdicom", "alembic", "apscheduler", "sqlalchemy")
_TOLD_BY_US = ("pynetdicom.acse", "pynetdicom.transport")
"""Loggers that say that an association did not come about: whoever wanted it says so, and why."""
_HARMLESS_LIBRARIES = ("alembic", "apscheduler")
"""Libraries that never see a data set: the text of their messages is kept."""


def log(name: str) -> FilteringBoundLogger:
    """Return the logger of a module; it follows whatever `configure` said last."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def about(**details: object) -> AbstractContextManager[None]:
    """Have all that this thread logs meanwhile carry these details, too."""
    return structlog.contextvars.bound_contextvars(**details)


def configure(level: Level, format: Format) -> None:  # noqa: A002
    """Send everything that this process says to standard error: our logs, libraries, warnings, uncaught exceptions.

    `level` is the least urgent level that is written; libraries are heard from `warning` on.
    """
    _configure_structlog(level, format)
    logging.basicConfig(handlers=[_LibraryHandler()], level=logging.WARNING, force=True)
    for library in _QUIET_LIBRARIES:
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
        logger.propagate = True
    for library in _TOLD_BY_US:
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.showwarning = _show_warning
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


@dataclass
class _Told:
    """What was said of one peer: how often it went unsaid since, until when, and the latest details."""

    until: float
    details: Mapping[str, object]
    unsaid: int = 0


class Sparing:
    """Warnings about peers: each event once a minute for each peer, then how often it went unsaid.

    Peers beyond the first thousand within a minute are one peer, "(others)": nobody fills a disk by calling.
    """

    def __init__(self, name: str, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log(name)
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], _Told] = {}

    def warning(self, event: str, peer: str, **details: object) -> None:
        """Write a warning, unless the same was written about this peer within a minute."""
        self.flush()
        with self._lock:
            key = (event, peer)
            if key not in self._told and len(self._told) >= _MAXIMUM_PEERS:
                key = (event, "(others)")
            if told := self._told.get(key):
                told.unsaid += 1
                told.details = details
                return
            self._told[key] = _Told(self._clock() + self._seconds, details)
        self._log.warning(event, peer=key[1], **details)

    def flush(self) -> None:
        """Write what went unsaid in minutes that are over."""
        now = self._clock()
        with self._lock:
            # In the order of their ends.
            while self._told and next(iter(self._told.values())).until <= now:
                (event, peer), told = next(iter(self._told.items()))
                del self._told[event, peer]
                if told.unsaid:
                    self._told[event, peer] = _Told(now + self._seconds, told.details)
                    self._log.warning(event, peer=peer, **told.details, unsaid=told.unsaid)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `flush` has something to write; None while nothing went unsaid."""
        with self._lock:
            end = next((told.until for told in self._told.values() if told.unsaid), None)
        return None if end is None else max(end - self._clock(), 0)


def escaped(text: str, limit: int = MAXIMUM_LENGTH) -> str:
    r"""Return text on one line: bounded, with everything that is not printable as an escape (`\n`, `\x1b`)."""
    # Bounded before and after: the work first, then the length, which escapes add to.
    visible = "".join(each if each.isprintable() else _escape(each) for each in text[: limit + 1])
    return visible if len(visible) <= limit else visible[: limit - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _configure_structlog(level: Level, format: Format) -> None:  # noqa: A002
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_origin,
            _describe_exception,
            _sanitise,
            _render_json if format == "json" else _render_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_StandardError,
        cache_logger_on_first_use=False,
    )


class _StandardError:
    """Writes each event with one call, so that lines of several threads do not mix."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    debug = info = warning = error = critical = write


def _add_origin(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": now, "level": method, "logger": logger.name, "event": event.pop("event", ""), **event}


def _describe_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by what was raised and where: no locals, no source lines, no foreign messages."""
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()[1]
    if isinstance(raised, tuple):
        raised = raised[1]
    if isinstance(raised, BaseException):
        event["exception"] = " <- ".join(_described(each) for each in _chain(raised))
        event["frames"] = _frames(raised)
    return event


def _described(raised: BaseException) -> str:
    name = type(raised).__qualname__
    return f"{name}: {raised}" if isinstance(raised, MeddaemonError) else name


def _chain(raised: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    following: BaseException | None = raised
    while following is not None and following not in chain and len(chain) < _MAXIMUM_DEPTH:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return chain


def _frames(raised: BaseException) -> list[str]:
    """Return where it was raised, innermost first."""
    frames = traceback.extract_tb(raised.__traceback__, limit=-_MAXIMUM_FRAMES)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames)]


def _sanitise(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {escaped(str(key), 100): _plain(value) for key, value in event.items()}


def _plain(value: object, depth: int = 0) -> object:  # noqa: PLR0911 - one line per kind of value
    """Return a value as bounded JSON: numbers stay, everything else becomes escaped text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    if isinstance(value, Mapping) and depth < _MAXIMUM_DEPTH:
        items = list(value.items())[:_MAXIMUM_ITEMS]
        return {escaped(str(key), 100): _plain(each, depth + 1) for key, each in items}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str) and depth < _MAXIMUM_DEPTH:
        return [_plain(each, depth + 1) for each in list(value)[:_MAXIMUM_ITEMS]]
    if isinstance(value, BaseException):
        return escaped(_described(value))
    return escaped(str(value))


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return json.dumps(event, ensure_ascii=False)


def _render_text(_: WrappedLogger, __: str, event: EventDict) -> str:
    head = f"{event.pop('time')} {event.pop('level'):<7} {event.pop('event', '')}"
    return " ".join([head, *(f"{key}={_as_text(value)}" for key, value in event.items())])


def _as_text(value: object) -> str:
    if isinstance(value, str) and value and not any(each in value for each in ' "='):
        return value
    return json.dumps(value, ensure_ascii=False)


class _LibraryHandler(logging.Handler):
    """Takes what libraries log: level, logger and place, with the text only of those that never see a data set."""

    def emit(self, record: logging.LogRecord) -> None:
        library = record.name.partition(".")[0]
        text = record.getMessage() if library in _HARMLESS_LIBRARIES else "message of a library"
        write: Callable[..., object] = (
            log(record.name).warning if record.levelno < logging.ERROR else log(record.name).error
        )
        write(text, place=f"{record.module}:{record.lineno}", exc_info=record.exc_info)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log("warnings").warning("warning of a library", category=category.__name__, place=f"{filename}:{lineno}")


def _uncaught(kind: type[BaseException], raised: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log(__name__).error("uncaught exception", exc_info=(kind, raised, trace))


def _uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
    thread = failure.thread.name if failure.thread else ""
    log(__name__).error("uncaught exception in a thread", thread=thread, exc_info=failure.exc_value)


# Until `configure` is called: text on standard error, never structlog's own default of standard output.
_configure_structlog("info", "text")
