"""Each kind of destination has what it needs and nothing that means nothing to it."""

import sys
from pathlib import Path

import pytest

from meddaemon.config.custody import owed_reports, policy_of
from meddaemon.config.settings import Settings, load
from meddaemon.domain.custody import CustodyPolicy, Proof
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.filters import Number
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.domain.outlet import ObjectKind, TransferForm

HEAD = '[[destinations]]\nname = "there"\n'


def settings(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "meddaemon.toml"
    file.write_text(HEAD + text)
    return load(file, {})


def test_every_kind(tmp_path: Path) -> None:
    dicom = 'ae_title = "PACS"\nhost = "pacs"\nport = 104\nwhen = "volume > 30 mL"\n'
    (there,) = settings(tmp_path, dicom).destinations
    assert (there.ae_title, there.host, there.port) == ("PACS", "pacs", 104)
    assert isinstance(there.outlet.when, Number)
    web = 'kind = "dicomweb"\nurl = "https://pacs/dicom-web"\ntoken_file = "token"\n'
    (there,) = settings(tmp_path, web).destinations
    assert (there.url, there.token_file) == ("https://pacs/dicom-web", str(tmp_path / "token"))
    (there,) = settings(tmp_path, 'kind = "folder"\ndirectory = "out"\nobjects = ["SR"]\n').destinations
    assert (there.directory, there.outlet.kinds, there.outlet.when) == (str(tmp_path / "out"), ("SR",), None)
    found = settings(tmp_path, 'kind = "sender"\n')
    assert list(found.outlets) == ["there"]


def test_how_it_is_sent_to(tmp_path: Path) -> None:
    text = (
        'kind = "sender"\nobjects = ["KO", "SC"]\nsegmentation = ["labelmap", "binary"]\nreport = ["2d"]\n'
        'transfer_syntaxes = ["implicit", "rle"]\nconnections = 4\nwindow = "nights"\nmaximum_tries = 3\n'
        '[[windows]]\nname = "nights"\ntimes = ["18:00-06:00"]\ntime_zone = "UTC"\n'
    )
    (there,) = settings(tmp_path, text).destinations
    assert there.outlet.kinds == (ObjectKind.KO, ObjectKind.SC)
    assert [str(each) for each in there.outlet.editions] == ["labelmap/2d", "binary/2d"]
    assert there.transfer_syntaxes == (TransferForm.IMPLICIT, TransferForm.RLE)
    assert (there.connections, there.window, there.maximum_tries) == (4, "nights", 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: destinations[0].ae_title: is missing: a destination of kind dicom needs it"),
        ('kind = "dicomweb"\n', "destinations[0].url: is missing: a destination of kind dicomweb needs it"),
        ('kind = "folder"\n', "destinations[0].directory: is missing: a destination of kind folder needs it"),
        ('kind = "sender"\nport = 1\n', "4: destinations[0].port: means nothing to a destination of kind sender"),
        ('kind = "web"\n', "3: destinations[0].kind: "),
        ('kind = "dicomweb"\nurl = "pacs"\n', "4: destinations[0].url: must be a URL such as"),
        ('kind = "dicomweb"\nurl = "https://me:pw@pacs/"\n', "names a user: use user and password_file"),
        ('kind = "dicomweb"\nurl = "http://pacs/"\ntoken_file = "t"\n', "would send a secret in clear text: use https"),
        ('kind = "dicomweb"\nurl = "https://pacs/"\nuser = "me"\n', "needs user and password_file, or neither"),
        (
            'kind = "dicomweb"\nurl = "https://p/"\nuser = "me"\npassword_file = "p"\ntoken_file = "t"\n',
            "there is a user already: one of both",
        ),
        ('kind = "sender"\nwindow = "nights"\n', "4: destinations[0].window: there is no window 'nights'"),
        ('kind = "sender"\nconnections = 0\n', "4: destinations[0].connections: "),
        ('kind = "sender"\nmaximum_tries = 0\n', "4: destinations[0].maximum_tries: "),
        ('kind = "sender"\ntransfer_syntaxes = ["jpeg"]\n', "4: destinations[0].transfer_syntaxes[0]: should be 'rle'"),
        ('kind = "sender"\nsegmentation = []\n', "4: destinations[0].segmentation: "),
        (
            'kind = "dicomweb"\nurl = "https://p/"\ncustody = "commitment"\n',
            "5: destinations[0].custody: a destination of kind dicomweb cannot be asked for this",
        ),
        ('kind = "folder"\ndirectory = "o"\ncustody = "query"\n', "a destination of kind folder cannot be asked for"),
        ('kind = "sender"\ncustody = "sometimes"\n', "4: destinations[0].custody: "),
        (
            'kind = "sender"\ncustody = "query"\ncustody_fallback = "query"\n',
            '5: destinations[0].custody_fallback: means nothing without custody = "commitment"',
        ),
        ('kind = "sender"\nreported_by = ["A"]\n', 'reported_by: means nothing without custody = "commitment"'),
        (
            'ae_title = "PACS"\nhost = "p"\nport = 104\ncustody = "commitment"\n[listener]\naccept = "listed"\n',
            "6: destinations[0].custody: 'PACS' will call us to report, and is not in [[peers]]: it would be rejected",
        ),
        ('kind = "sender"\nannounce_to = ["A"]\n', "nobody could retrieve from a destination of kind sender"),
        (
            'ae_title = "PACS"\nhost = "p"\nport = 104\nannounce_to = ["PACS", "RIS"]\n',
            "6: destinations[0].announce_to[1]: 'RIS' is neither this destination nor in [[peers]] with host and port",
        ),
        ('kind = "sender"\nhl7 = "ris"\n', "4: destinations[0].hl7: must be a host and a port"),
        ('kind = "sender"\nhl7_tls = true\n', "4: destinations[0].hl7_tls: means nothing without hl7"),
        ('kind = "sender"\nhl7 = "ris:1"\nhl7_sender = "A^B"\n', "5: destinations[0].hl7_sender: "),
        (
            'kind = "sender"\nfhir_url = "http://f/r4"\n',
            "4: destinations[0].fhir_url: would send patients in clear text",
        ),
        ('kind = "sender"\nfhir_ca = "ca"\n', "4: destinations[0].fhir_ca: means nothing without fhir_url"),
        (
            'kind = "sender"\nfhir_url = "https://f/r4"\nfhir_user = "me"\n',
            "needs fhir_user and fhir_password_file, or neither",
        ),
        ('kind = "sender"\nwhen = "volume >"\n', "4: destinations[0].when: character 9: a number expected"),
        ('kind = "sender"\nwhen = "not since 30d"\n', "4: destinations[0].when: since and until have no place here"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        settings(tmp_path, text)
    assert said in str(caught.value)
    assert "pw" not in str(caught.value).replace("password", "")


def test_what_a_destination_must_prove(tmp_path: Path) -> None:
    dicom = 'ae_title = "PACS"\nhost = "pacs"\nport = 104\n'
    found = settings(tmp_path, dicom)
    assert policy_of(found.destinations[0], found.custody) == CustodyPolicy()
    assert not owed_reports(found.destinations)
    asked = 'custody = "commitment"\ncustody_fallback = "query"\nreported_by = ["OTHER"]\n'
    found = settings(tmp_path, f"{dicom}{asked}[custody]\nmaximum_requests = 7\nassociation_seconds = 0\n")
    assert policy_of(found.destinations[0], found.custody) == CustodyPolicy(
        proof=Proof.COMMITMENT, fallback=True, reported_by=("OTHER",), maximum_requests=7, association_seconds=0
    )
    assert owed_reports(found.destinations)


def test_who_is_told_by_hl7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'kind = "sender"\nhl7 = "ris:2575"\nhl7_receiver = "RIS|CLINIC"\nhl7_tls = true\nhl7_ca = "ris.pem"\n'
    found = settings(tmp_path, text)
    (there,) = found.destinations
    assert there.told == (Target(form=NoticeForm.HL7, target="ris:2575"),)
    assert (there.hl7_sender, there.hl7_ca) == ("MEDDAEMON", str(tmp_path / "ris.pem"))
    monkeypatch.setitem(sys.modules, "hl7apy", None)
    with pytest.raises(InvalidConfiguration, match=r"pip install 'meddaemon\[messages\]'"):
        settings(tmp_path, text)
