"""What leaves to a PACS that does anything that a PACS may do: answers, aborts, stalls, loses, refuses."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
from certificates import Authority
from pydicom.uid import BasicTextSRStorage
from scripted_scp import (
    STATUSES,
    Abort,
    Cut,
    Drip,
    Fate,
    Lose,
    Reject,
    Reply,
    ScriptedScp,
    Silent,
    Stall,
    Step,
    Through,
    Wire,
)
from test_delivery import report

from meddaemon.results.dimse import ClientTls, store
from meddaemon.results.transport import Answer, Outgoing, Verdict

TAKEN, AGAIN, HOLD = Verdict.TAKEN, Verdict.TRY_AGAIN, Verdict.HOLD
MEANS = {
    "success": TAKEN,
    "warning": TAKEN,
    "duplicate": TAKEN,
    "out of resources": AGAIN,
    "failure": AGAIN,
    "refused": HOLD,
}


@pytest.fixture
def objects(tmp_path: Path) -> list[Outgoing]:
    """Three reports to send."""
    return [outgoing(tmp_path, number) for number in (1, 2, 3)]


def outgoing(folder: Path, number: int) -> Outgoing:
    encoded = report("SR", f"1.2.9.{number}")
    path = folder / f"{number}.dcm"
    path.write_bytes(encoded.content)
    return Outgoing(
        path=path,
        sop_class_uid=encoded.sop_class_uid,
        sop_instance_uid=encoded.sop_instance_uid,
        transfer_syntax_uid=encoded.transfer_syntax_uid,
    )


def sent(pacs: ScriptedScp, port: int, objects: Sequence[Outgoing], seconds: float = 60) -> list[Answer]:
    remote = pacs.remote(port, response_timeout_seconds=seconds, association_timeout_seconds=seconds)
    return list(store(remote, objects))


def test_every_status_means_one_thing(tmp_path: Path) -> None:
    statuses = [(name, each) for name, listed in STATUSES.items() for each in listed]
    pacs = ScriptedScp.answering(*(each for _, each in statuses))
    with pacs.listening() as port:
        answers = sent(pacs, port, [outgoing(tmp_path, number) for number in range(len(statuses))])
    assert [(each.status, each.verdict) for each in answers] == [(status, MEANS[name]) for name, status in statuses]
    assert [each.status for each in pacs.arrivals] == [status for _, status in statuses]
    assert pacs.associations == 1


@pytest.mark.parametrize(
    ("steps", "verdicts", "kept"),
    [
        ([Lose(), Reply()], [TAKEN, TAKEN, TAKEN], 2),
        ([Abort()], [AGAIN, AGAIN, AGAIN], 0),
        ([Reply(), Abort(taken=True)], [TAKEN, AGAIN, AGAIN], 3),
        ([Abort(), Reply()], [AGAIN, TAKEN, TAKEN], 2),
        ([Reply(), Reply(0xA700, "disk full"), Reply()], [TAKEN, AGAIN, TAKEN], 2),
    ],
)
def test_what_a_pacs_does_with_an_object(
    objects: list[Outgoing], steps: list[Step], verdicts: list[Verdict], kept: int
) -> None:
    pacs = ScriptedScp(steps=steps)
    with pacs.listening() as port:
        answers = sent(pacs, port, objects)
    assert [each.verdict for each in answers] == verdicts
    assert len(pacs.store) == kept
    assert all(len(pacs.versions(uid)) == 1 for uid in pacs.uids)


def test_a_pacs_that_stalls_is_given_up(objects: list[Outgoing]) -> None:
    pacs = ScriptedScp(steps=[Stall()])
    with pacs.listening() as port:
        answers = sent(pacs, port, objects, seconds=0.5)
        assert pacs.stalled.is_set()
    assert [each.verdict for each in answers] == [AGAIN] * 3
    assert "no answer" in answers[0].reason


@pytest.mark.parametrize(
    ("fate", "verdicts", "said"),
    [
        (Reject(permanent=True, reason=7), [HOLD] * 3, "rejected the association"),
        (Reject(permanent=False, source=3, reason=2), [AGAIN] * 3, "rejected the association"),
        (Cut(), [AGAIN] * 3, "PACS at 127.0.0.1"),
        (Cut(how="reset"), [AGAIN] * 3, "PACS at 127.0.0.1"),
        (Silent(), [AGAIN] * 3, "PACS at 127.0.0.1"),
        # The others go by an association of their own.
        (Cut(after=200), [AGAIN, TAKEN, TAKEN], "no answer"),
        (Cut(after=200, how="close"), [AGAIN, TAKEN, TAKEN], "no answer"),
        (Cut(after=200, how="reset"), [AGAIN, TAKEN, TAKEN], "no answer"),
        # Of a machine that is busy, it is said that so few bytes went in so much time.
        (Silent(after=200), [AGAIN, TAKEN, TAKEN], "no answer: "),
    ],
)
def test_what_happens_on_the_wire(objects: list[Outgoing], fate: Fate, verdicts: list[Verdict], said: str) -> None:
    pacs = ScriptedScp()
    with pacs.listening() as target:
        wire = Wire(target=target, fates=[fate, Through()])
        with wire.listening() as port:
            # Only silence is waited for: a busy machine may take its time to answer.
            answers = sent(pacs, port, objects, seconds=2 if isinstance(fate, Silent) else 30)
            assert sorted(each.verdict.value for each in answers) == sorted(each.value for each in verdicts)
            assert said in next(each.reason for each in answers if each.verdict is not TAKEN)
            failed = [each.outgoing for each in answers if each.verdict is not TAKEN]
            assert [each.verdict for each in sent(pacs, port, failed)] == [TAKEN] * len(failed)
    assert sorted(pacs.uids) == [each.sop_instance_uid for each in objects]


def test_what_drips_arrives(objects: list[Outgoing]) -> None:
    pacs = ScriptedScp()
    with pacs.listening() as target, Wire(target=target, fates=[Drip(bytes_per_second=5000)]).listening() as port:
        assert [each.verdict for each in sent(pacs, port, objects[:1])] == [TAKEN]
    assert pacs.uids == ["1.2.9.1"]


def test_what_is_refused_is_held(objects: list[Outgoing]) -> None:
    pacs = ScriptedScp(refuses=[str(BasicTextSRStorage)])
    with pacs.listening() as port:
        answers = sent(pacs, port, objects)
    assert {each.verdict for each in answers} == {HOLD}
    assert pacs.arrivals == []


def test_by_tls_each_proves_who_it_is(objects: list[Outgoing], tmp_path: Path) -> None:
    ca, stranger = Authority.make(tmp_path), Authority.make(tmp_path, "stranger")
    server, client = ca.issue("127.0.0.1"), ca.issue("meddaemon")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca.file)
    pacs = ScriptedScp()
    with pacs.listening(context=context) as port:
        for identity, trusted, verdict in (
            (client, ca.file, TAKEN),
            (None, ca.file, AGAIN),
            (stranger.issue("other"), ca.file, AGAIN),
            (client, stranger.file, AGAIN),
        ):
            remote = pacs.remote(
                port, tls=ClientTls(identity=identity, trusted=trusted), association_timeout_seconds=5.0
            )
            assert {each.verdict for each in store(remote, objects)} == {verdict}
    assert pacs.uids == [each.sop_instance_uid for each in objects]
