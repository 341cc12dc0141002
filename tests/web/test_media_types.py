import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.web.media_types import parse_media_type, preferred

OFFERED = ("application/dicom+json", "application/dicom+xml")


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("application/dicom", "application/dicom", {}),
        (
            'Multipart/Related; Type="application/dicom"; boundary="a b"',
            "multipart/related",
            {"type": "application/dicom", "boundary": "a b"},
        ),
        (
            "multipart/related;type=application/dicom;boundary=x",
            "multipart/related",
            {"type": "application/dicom", "boundary": "x"},
        ),
        (r'a/b; c="d\"e;f"', "a/b", {"c": 'd"e;f'}),
    ],
)
def test_media_types(text: str, name: str, parameters: dict[str, str]) -> None:
    found = parse_media_type(text)
    assert found is not None
    assert (found.name, found.parameters) == (name, parameters)


@pytest.mark.parametrize("text", ["", "dicom", "a/b;", "a/b; c", 'a/b; c="d', "a/b; c=1; C=2", "a/b x", 'a/b;c="d"e'])
def test_what_is_no_media_type(text: str) -> None:
    assert parse_media_type(text) is None


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", 0),
        ("*/*", 0),
        ("application/*", 0),
        ("application/dicom+xml", 1),
        ("application/dicom+json;q=0.1, application/dicom+xml", 1),
        ("*/*;q=0.1, application/dicom+json;q=0", 1),
        ("text/html, application/dicom+xml;q=0.5, */*;q=0.1", 1),
        ('multipart/related; type="a,b", application/dicom+xml', 1),
        ("text/html", None),
        ("application/dicom+json;q=0", None),
        ("application/dicom+json;q=lots", None),
        (",,,", None),
    ],
)
def test_what_a_client_prefers(accept: str, answer: int | None) -> None:
    assert preferred(accept, OFFERED) == (None if answer is None else OFFERED[answer])


@given(st.text(max_size=60))
def test_any_text_is_understood_or_not(text: str) -> None:
    parse_media_type(text)
    assert preferred(text, OFFERED) in (*OFFERED, None)
