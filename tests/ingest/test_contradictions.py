"""In what instances of one study may differ, and in what they must not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.domain.series import Instance
from meddaemon.ingest.contradictions import contradictions
from meddaemon.ingest.describe import describe_study

Header = Mapping[str, tuple[str, ...]]
SERIES = "1.2.3.1"


def _kinds(*headers: Header, shared: Mapping[str, list[str]] | None = None, apart: bool = False) -> list[str]:
    """Return in what a study of these instances contradicts itself; `apart` puts each in a series of its own."""
    instances: dict[str, tuple[Instance, ...]] = {}
    for number, header in enumerate(headers):
        series = f"{SERIES}.{number}" if apart else SERIES
        one = Instance(
            sop_instance_uid=f"1.2.3.4.{number}",
            sop_class_uid="1.2",
            transfer_syntax_uid="1.2",
            path=Path("nowhere"),
            sha256=f"{number}",
            size=1,
            header=header,
        )
        instances[series] = (*instances.get(series, ()), one)
    study = describe_study(study_id=1, study_instance_uid="1.2.3", generation=1, instances=instances)
    found = contradictions(study, shared or {})
    for each in found:
        values = [part for header in headers for value in header.values() for part in value if len(part) > 3]
        assert not [value for value in values if value in each.reason]
    return [each.kind for each in found]


@pytest.mark.fault(81)
@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [
        ("PatientID", "4711", "4712"),
        ("IssuerOfPatientID", "Clinic A", "Clinic B"),
        ("PatientName", "Meier^Anna", "Mueller^Anna"),
        ("PatientName", "Meier^Anna", "Meier^Berta"),
        ("PatientName", "Yamada^Tarou=山田^太郎", "Yamada^Tarou=山田^次郎"),
        ("PatientBirthDate", "19700101", "19700102"),
        ("PatientSex", "F", "M"),
        ("Modality", "CT", "MR"),
    ],
)
def test_what_must_not_differ(keyword: str, one: str, other: str) -> None:
    """Fault 81; and the reason names nobody."""
    assert _kinds({keyword: (one,)}, {keyword: (other,)}, {keyword: (one,)}) == [keyword]


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [
        ("PatientID", "4711", ""),
        ("PatientID", "a 1", "A  1 "),
        ("IssuerOfPatientID", "Clinic", ""),
        ("PatientName", "Meier^Anna", "MEIER^ANNA^^"),
        ("PatientName", "Meier^Anna", ""),
        ("PatientName", "Yamada^Tarou", "Yamada^Tarou=山田^太郎"),
        ("PatientName", "Yamada^Tarou", "=山田^太郎"),
        ("PatientBirthDate", "19700101", "1970.01.01"),
        ("PatientSex", "F", "f "),
        ("Modality", "CT", ""),
        ("SeriesDescription", "one", "other"),
    ],
)
def test_what_may_differ(keyword: str, one: str, other: str) -> None:
    """Fault 62: what is empty contradicts nothing."""
    assert _kinds({keyword: (one,)}, {keyword: (other,)}, {}) == []


def test_series_may_have_modalities_of_their_own_and_one_patient() -> None:
    assert _kinds({"Modality": ("PT",)}, {"Modality": ("CT",)}, apart=True) == []
    assert _kinds({"PatientID": ("4711",)}, {"PatientID": ("4712",)}, apart=True) == ["PatientID"]


def test_a_series_of_two_studies() -> None:
    assert _kinds({}, shared={SERIES: ["9.9"], "1.2.77": ["9.8"]}) == ["SeriesInstanceUID"]


@given(st.lists(st.sampled_from(["", "A", "a ", "B", "C"]), max_size=8))
def test_the_order_of_arrival_is_all_the_same(ids: list[str]) -> None:
    headers = [{"PatientID": (each,)} for each in ids]
    said = {each.strip().lower() for each in ids} - {""}
    assert _kinds(*headers) == _kinds(*headers[::-1]) == (["PatientID"] if len(said) > 1 else [])
