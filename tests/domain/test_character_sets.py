"""Text in the character sets of DICOM: the examples of the Standard, and everything that they can say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddaemon.domain.character_sets import CharacterSets, character_sets

NAME = "\\^="
EXAMPLES = [
    # PS3.5 H.3.1, H.3.2, I.2, J.3, K.2 and 6.1.2.5; the delimiters of the last bring the first set back.
    (
        ("", "ISO 2022 IR 87"),
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        ("ISO 2022 IR 13", "ISO 2022 IR 87"),
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (
        ("", "ISO 2022 IR 149"),
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (
        ("", "ISO 2022 IR 58"),
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东=",
    ),
    (("ISO_IR 192",), "Wang^XiaoDong=王^小東=".encode(), "Wang^XiaoDong=王^小東="),
    (("GB18030",), b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东="),
    (("ISO_IR 13",), b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    (("ISO_IR 144",), b"\xbb\xee\xda^A", "Люк^A"),
    (("ISO 2022 IR 100", "ISO 2022 IR 144"), b"\x1b-L\xbb\xee\xda\x1b-A^J\xfcrgen", "Люк^Jürgen"),
]


@pytest.mark.parametrize(("terms", "content", "text"), EXAMPLES)
def test_the_examples_of_the_standard(terms: tuple[str, ...], content: bytes, text: str) -> None:
    sets = character_sets(terms)
    assert sets.is_known
    assert sets.decode(content, NAME) == text
    assert sets.encode(text, NAME) == content


def test_a_delimiter_brings_the_first_set_back_though_nothing_says_so() -> None:
    """As pydicom 3.0.2 does not: it reads `Jќrgen`."""
    sets = character_sets(["ISO 2022 IR 100", "ISO 2022 IR 144"])
    assert sets.decode(b"\x1b-L\xbb\xee\xda^J\xfcrgen", NAME) == "Люк^Jürgen"
    assert sets.decode(b"\x1b-L\xbb\xee\xda\r\nJ\xfcrgen") == "Люк\r\nJürgen"


def test_every_line_says_again_what_its_codes_mean() -> None:
    sets = character_sets(["", "ISO 2022 IR 149"])
    assert sets.encode("김\r\n김") == b"\x1b$)C\xb1\xe8\r\n\x1b$)C\xb1\xe8"


def test_a_backslash_or_a_caret_within_a_character_is_none() -> None:
    for terms, text in ((["", "ISO 2022 IR 87"], "本予"), ("GB18030", "乗")):
        content = character_sets(terms).encode(text, NAME)
        assert {*content} & {*b"\\^="}
        assert character_sets(terms).decode(content, NAME) == text


@pytest.mark.parametrize(
    "terms",
    ["", "ISO_IR 13", "GBK", ["", "ISO 2022 IR 58"], ["ISO 2022 IR 13", "ISO 2022 IR 87", "ISO 2022 IR 159"]]
    + [f"ISO_IR {number}" for number in (100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 192, 203)]
    + [["ISO 2022 IR 126", "ISO 2022 IR 138", "ISO 2022 IR 87", "ISO 2022 IR 149"]],
)
@given(data=st.data())
@settings(max_examples=30)
def test_what_is_written_is_read_and_what_cannot_be_said_is_refused(
    terms: str | list[str], data: st.DataObject
) -> None:
    sets = character_sets(terms)
    assert sets.is_known
    letters = st.one_of(st.sampled_from("A ^=\\\r\n\x1b~é本Ωשℓﾔ丂한张Жไ\u200f"), st.characters(codec="utf-8"))
    text = data.draw(st.text(letters, max_size=12))
    for delimiters in ("", "\\", NAME):
        try:
            content = sets.encode(text, delimiters)
        except UnicodeEncodeError:
            continue
        assert sets.decode(content, delimiters) == text


@pytest.mark.parametrize("content", [b"\x1b$)X\xd5\xc5", b"A\xd5", b"\x1b$)C\xff\xff", b"\x1b"])
def test_noise_is_no_text(content: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        character_sets(["", "ISO 2022 IR 149"]).decode(content)


@pytest.mark.parametrize(
    ("value", "known"),
    [
        (None, True),
        ("ISO_IR 6", True),
        (["", "ISO 2022 IR 87"], True),
        (["ISO 2022 IR 6", "ISO 2022 IR 100"], True),
        ("ISO_IR 999", False),
        ("ISO 2022 IR 87", False),
        (["ISO_IR 192", "ISO 2022 IR 87"], False),
        (["ISO_IR 100", "ISO 2022 IR 144"], False),
    ],
)
def test_only_what_the_standard_defines_is_written(value: str | list[str] | None, known: bool) -> None:
    assert character_sets(value).is_known is known


def test_no_value_is_ascii() -> None:
    assert character_sets(None) == character_sets("") == CharacterSets()
    assert str(character_sets(["", "ISO 2022 IR 87"])) == "\\ISO 2022 IR 87"
    with pytest.raises(UnicodeEncodeError):
        character_sets(None).encode("é")
