from contextlib import suppress
from pathlib import Path

import pytest
from encoded import SYNTAXES, Encoded, deflated, encoded, written
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from meddaemon.domain.errors import RefusedInstance
from meddaemon.domain.series import Instance
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID
from meddaemon.ingest.part10 import is_plain, read_part10, with_keywords
from meddaemon.ingest.store import PREAMBLE, VERSION_NAME, InstanceStore, as_part10


def ct(**attributes: object) -> Dataset:
    data_set = Dataset()
    values = {"SOPClassUID": CTImageStorage, "SOPInstanceUID": "1.2.3", "Modality": "CT", **attributes}
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    return data_set


def saved(path: Path, data: bytes, syntax: str = ExplicitVRLittleEndian, uid: str = "1.2.3") -> Path:
    content = as_part10(data, sop_class_uid=CTImageStorage, sop_instance_uid=uid, transfer_syntax_uid=syntax)
    path.write_bytes(content)
    return path


UIDS = st.from_regex(r"(0|[1-9][0-9]{0,20})(\.(0|[1-9][0-9]{0,10})){1,3}", fullmatch=True)


@given(UIDS, UIDS, UIDS, st.binary(max_size=20))
def test_the_file_meta_is_what_pydicom_writes(sop_class: str, instance: str, syntax: str, data: bytes) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(instance)
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = VERSION_NAME
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=True)
    ours = as_part10(data, sop_class_uid=sop_class, sop_instance_uid=instance, transfer_syntax_uid=syntax)
    assert ours == PREAMBLE + buffer.getvalue() + data


@given(encoded(syntaxes=(*SYNTAXES, DeflatedExplicitVRLittleEndian)))
def test_the_data_set_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, drawn: Encoded) -> None:
    syntax = drawn.transfer_syntax_uid
    data = deflated(drawn.data) if syntax == DeflatedExplicitVRLittleEndian else drawn.data
    path = saved(tmp_path_factory.getbasetemp() / "one.dcm", data, syntax)
    incoming = read_part10(path)
    assert (incoming.data, incoming.transfer_syntax_uid) == (data, syntax)
    assert (incoming.sop_class_uid, incoming.sop_instance_uid) == (CTImageStorage, "1.2.3")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dcm"
    for content in (data, bytes(128) + b"DICM" + data, bytes(128) + b"DICM\x02\x00" + data, b"\x08\x00" + data):
        path.write_bytes(content)
        with suppress(RefusedInstance):
            read_part10(path)


@pytest.mark.fault(67)
@pytest.mark.parametrize("preamble", [b"MZ\x90\x00" + bytes(124), b"II*\x00" + bytes(124)])
def test_the_preamble_is_dropped(tmp_path: Path, preamble: bytes) -> None:
    path = saved(tmp_path / "a.dcm", written(ct(), ExplicitVRLittleEndian))
    path.write_bytes(preamble + path.read_bytes()[128:])
    incoming = read_part10(path)
    store = InstanceStore(tmp_path / "store", minimum_free_bytes=0)
    stored = store.put(
        incoming.data,
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
    )
    assert store.path(stored.sha256).read_bytes()[:128] == bytes(128)
    store.close()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_bare_data_set_is_taken(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "bare"
    path.write_bytes(written(ct(), syntax))
    incoming = read_part10(path)
    assert (incoming.transfer_syntax_uid, incoming.sop_instance_uid) == (syntax, "1.2.3")
    assert incoming.data == path.read_bytes()
    assert not is_plain(path, incoming)


def test_a_bare_data_set_that_is_cut_or_nameless_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare"
    path.write_bytes(written(ct(), ExplicitVRLittleEndian)[:-1])
    with pytest.raises(RefusedInstance, match="no whole data set"):
        read_part10(path)
    path.write_bytes(written(ct(SOPInstanceUID=""), ExplicitVRLittleEndian))
    with pytest.raises(RefusedInstance, match="without SOP Class or SOP Instance UID"):
        read_part10(path)


def test_the_data_set_names_the_object_whatever_the_meta_group_says(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dcm", written(ct(), ExplicitVRLittleEndian), uid="9.9")
    incoming = read_part10(path)
    assert incoming.sop_instance_uid == "1.2.3"
    assert not is_plain(path, incoming)
    right = saved(tmp_path / "b.dcm", written(ct(), ExplicitVRLittleEndian))
    assert is_plain(right, read_part10(right))


def test_the_meta_group_names_the_object_where_the_data_set_does_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dcm", written(ct(SOPInstanceUID="", SOPClassUID=""), ExplicitVRLittleEndian))
    incoming = read_part10(path)
    assert (incoming.sop_class_uid, incoming.sop_instance_uid) == (CTImageStorage, "1.2.3")


@pytest.mark.parametrize("cut", [133, 136, 141, 150, 200, 250])
def test_a_meta_group_that_is_cut_is_refused(tmp_path: Path, cut: int) -> None:
    path = saved(tmp_path / "a.dcm", written(ct(), ExplicitVRLittleEndian))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RefusedInstance):
        read_part10(path)


def test_an_attribute_that_nobody_asked_for_is_read_later(tmp_path: Path) -> None:
    data = deflated(written(ct(StationName="S7"), ExplicitVRLittleEndian))
    path = saved(tmp_path / "a.dcm", data, DeflatedExplicitVRLittleEndian)
    instance = Instance(
        sop_instance_uid="1.2.3",
        sop_class_uid=CTImageStorage,
        transfer_syntax_uid=DeflatedExplicitVRLittleEndian,
        path=path,
        sha256="",
        size=0,
        header={"Modality": ("known",)},
    )
    read = with_keywords(instance, {"Modality", "StationName", "ProtocolName"})
    assert read.header == {"Modality": ("known",), "StationName": ("S7",), "ProtocolName": ()}
    path.write_bytes(b"damaged")
    assert with_keywords(instance, {"StationName"}) == instance
    path.unlink()
    assert with_keywords(instance, {"StationName"}) == instance
