"""Where results go, as it is written: `[[destinations]]`."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from meddaemon.config.problems import Problems
from meddaemon.config.section import AeTitle, File, Name, Section
from meddaemon.config.toml_file import Keys
from meddaemon.domain.filters import InvalidFilter, Made, parse_filter, parts_of
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.domain.outlet import Edition, ObjectKind, Outlet, ReportForm, SegmentationForm, TransferForm
from meddaemon.domain.result import ResultStatus


def _filter(text: str) -> str:
    """Return a condition of the results language; a time has no place in it, since it is asked once."""
    if text:
        try:
            wanted = parse_filter(text)
        except InvalidFilter as invalid:
            raise ValueError(str(invalid)) from None
        if any(isinstance(part, Made) for part in parts_of(wanted)):
            raise ValueError("since and until have no place here: a result is asked when it is made")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment):
        raise ValueError("must be a URL such as https://pacs.example.org/dicom-web, below which /studies lies")
    if parts.username or parts.password:
        raise ValueError("names a user: use user and password_file")
    return text


def _host_and_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text and (not re.fullmatch(r"[^\s/]{1,253}", host) or not port.isdecimal() or not 0 < int(port) < 2**16):
        raise ValueError('must be a host and a port, such as "ris.example.org:2575"')
    return text


_APPLICATION = r"^[A-Za-z0-9 ._:/-]*(\|[A-Za-z0-9 ._:/-]*)?$"
"""Application and facility of an HL7 message; nothing in them needs an escape."""
# Written as text.
_Kind = Annotated[ObjectKind, Field(strict=False)]
_Segmentation = Annotated[SegmentationForm, Field(strict=False)]
_Report = Annotated[ReportForm, Field(strict=False)]
_Transfer = Annotated[TransferForm, Field(strict=False)]
_Status = Annotated[ResultStatus, Field(strict=False)]


class DestinationSettings(Section):
    """One place that results are sent to; which settings it needs depends on its kind (`NEEDED`).

    `objects` names the kinds of object that it gets, `when` the results (a filter of the results language),
    `statuses` what must be thought of them: others are documents, too, and leave only where they are asked for.
    `segmentation` and `report` are the forms that it may be given, `transfer_syntaxes` the encodings, the preferred one
    first. Up to `connections` at once are open to it, while `window` is open. Who is told of what is done there stands
    in `announce_to`, `hl7` and `fhir_url`.
    """

    name: Name
    kind: Literal["dicom", "dicomweb", "folder", "sender"] = "dicom"
    ae_title: AeTitle | Literal[""] = ""
    host: Annotated[str, Field(max_length=253, pattern=r"^[^\s/]*$")] = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    tls: bool = False
    ca: File = ""
    url: Annotated[str, AfterValidator(_url)] = ""
    token_file: File = ""
    user: Annotated[str, Field(pattern=r"^[^:\x00-\x1f]*$")] = ""
    password_file: File = ""
    directory: File = ""
    objects: Annotated[tuple[_Kind, ...], Field(min_length=1)] = (ObjectKind.SEG, ObjectKind.SR)
    segmentation: Annotated[tuple[_Segmentation, ...], Field(min_length=1)] = (SegmentationForm.BINARY,)
    report: Annotated[tuple[_Report, ...], Field(min_length=1)] = (
        ReportForm.COMPREHENSIVE_3D,
        ReportForm.COMPREHENSIVE,
    )
    transfer_syntaxes: tuple[_Transfer, ...] = ()
    when: Annotated[str, AfterValidator(_filter)] = ""
    statuses: Annotated[tuple[_Status, ...], Field(min_length=1)] = (ResultStatus.PLAUSIBLE,)
    connections: Annotated[int, Field(ge=1, le=16)] = 1
    window: str = ""
    maximum_tries: Annotated[int, Field(ge=1)] = 10
    custody: Literal["sent", "commitment", "query"] = "sent"
    custody_fallback: Literal["", "query"] = ""
    reported_by: tuple[AeTitle, ...] = ()
    announce_to: tuple[AeTitle, ...] = ()
    hl7: Annotated[str, Field(max_length=259), AfterValidator(_host_and_port)] = ""
    hl7_sender: Annotated[str, Field(max_length=128, pattern=_APPLICATION)] = "MEDDAEMON"
    hl7_receiver: Annotated[str, Field(max_length=128, pattern=_APPLICATION)] = ""
    hl7_tls: bool = False
    hl7_ca: File = ""
    fhir_url: Annotated[str, Field(max_length=300), AfterValidator(_url)] = ""
    fhir_token_file: File = ""
    fhir_user: Annotated[str, Field(pattern=r"^[^:\x00-\x1f]*$")] = ""
    fhir_password_file: File = ""
    fhir_ca: File = ""

    @property
    def told(self) -> tuple[Target, ...]:
        """Who is told that a result is done there."""
        return (
            *(Target(form=NoticeForm.IAN, target=each) for each in self.announce_to),
            *((Target(form=NoticeForm.HL7, target=self.hl7),) if self.hl7 else ()),
            *((Target(form=NoticeForm.FHIR, target=self.fhir_url),) if self.fhir_url else ()),
        )

    @property
    def outlet(self) -> Outlet:
        """What it takes."""
        return Outlet(
            kinds=self.objects,
            when=parse_filter(self.when) if self.when else None,
            asked=self.when,
            window=self.window,
            statuses=self.statuses,
            editions=tuple(
                Edition(segmentation=form, report=report) for form in self.segmentation for report in self.report
            ),
        )


MESSAGE_FILES = ("hl7_ca", "fhir_ca", "fhir_token_file", "fhir_password_file")
"""Settings of messages that name files."""
_DOCUMENTS = frozenset({ObjectKind.SR, ObjectKind.RTSTRUCT, ObjectKind.PR, ObjectKind.PDF, ObjectKind.KO})
"""Objects that have no pixels."""
NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"dicom": ("ae_title", "host", "port"), "dicomweb": ("url",), "folder": ("directory",), "sender": ()}
)
"""What each kind of destination cannot do without."""
_ALLOWED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dicom": ("ae_title", "host", "port", "tls", "ca"),
        "dicomweb": ("url", "token_file", "user", "password_file", "ca"),
        "folder": ("directory",),
        "sender": (),
    }
)


def check_destination(written: Mapping[str, object], keys: Keys, problems: Problems) -> None:
    """Note what a destination of its kind lacks, and what means nothing to it."""
    kind = str(written.get("kind", "dicom"))
    if kind not in NEEDED:
        return
    for key in NEEDED[kind]:
        if not written.get(key):
            problems.add((*keys, key), f"is missing: a destination of kind {kind} needs it")
    for other in dict.fromkeys(key for allowed in _ALLOWED.values() for key in allowed):
        if written.get(other) and other not in _ALLOWED[kind]:
            problems.add((*keys, other), f"means nothing to a destination of kind {kind}")
    if bool(written.get("user")) is not bool(written.get("password_file")):
        problems.add(keys, "needs user and password_file, or neither")
    if written.get("token_file") and written.get("user"):
        problems.add((*keys, "token_file"), "there is a user already: one of both")
    _check_messages(written, keys, problems)
    forms, objects = (written.get(key) for key in ("transfer_syntaxes", "objects"))
    documents = _DOCUMENTS.intersection(map(str, objects if isinstance(objects, list) else ("SR",)))
    if isinstance(forms, list) and forms and documents and not {"explicit", "implicit"} & set(map(str, forms)):
        said = f'{", ".join(sorted(documents))} could never leave: nothing in them can be compressed; add "explicit"'
        problems.add((*keys, "transfer_syntaxes"), said)
    secret = written.get("token_file") or written.get("user")
    if secret and str(written.get("url", "")).startswith("http://"):
        problems.add((*keys, "url"), "would send a secret in clear text: use https")


def _check_messages(written: Mapping[str, object], keys: Keys, problems: Problems) -> None:
    for other, base in (("hl7_receiver", "hl7"), ("hl7_tls", "hl7"), ("hl7_ca", "hl7_tls")):
        if written.get(other) and not written.get(base):
            problems.add((*keys, other), f"means nothing without {base}")
    for key, package in (("hl7", "hl7apy"), ("fhir_url", "fhirclient")):
        if written.get(key) and find_spec(package) is None:
            problems.add((*keys, key), f"needs {package}: pip install 'meddaemon[messages]'")
    for other in ("fhir_token_file", "fhir_user", "fhir_password_file", "fhir_ca"):
        if written.get(other) and not written.get("fhir_url"):
            problems.add((*keys, other), "means nothing without fhir_url")
    if bool(written.get("fhir_user")) is not bool(written.get("fhir_password_file")):
        problems.add(keys, "needs fhir_user and fhir_password_file, or neither")
    if written.get("fhir_token_file") and written.get("fhir_user"):
        problems.add((*keys, "fhir_token_file"), "there is a user already: one of both")
    if str(written.get("fhir_url", "")).startswith("http://"):
        problems.add((*keys, "fhir_url"), "would send patients in clear text: use https")
