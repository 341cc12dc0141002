"""What a contract may measure: lesions, formulas over measurements, and what is wrong with them by line."""

from pathlib import Path

import pytest

from meddaemon.config.contracts import load_contract
from meddaemon.domain.contract import LesionContract, MeasurementKind, ModelContract, Range
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.formulas import Measured, measured_in

VALID = """\
name = "model"
title = "Model"
version = "1.0"
manufacturer = "nobody"

[[inputs]]
key = "image"
series = { attribute = "Modality", equals = "CT" }

[[segments]]
label = 1
name = "Liver"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "10200004", scheme = "SCT", meaning = "Liver" }
colour = [200, 100, 0]
measure = ["volume", "long_axis", "mean"]

[[segments]]
label = 2
name = "Lesion"
category = { value = "49755003", scheme = "SCT", meaning = "Morphologically Abnormal Structure" }
type = { value = "52988006", scheme = "SCT", meaning = "Lesion" }
colour = [200, 0, 0]
measure = ["volume", "diameter"]
lesions = { minimum_ml = 0.1, connectivity = 18, most = 20 }

[[formulas]]
name = { value = "BURDEN", scheme = "99TEST", meaning = "Tumour burden" }
unit = { value = "%", scheme = "UCUM", meaning = "Percent" }
formula = 'volume of "Lesion" / (volume of "Liver" + volume of "Lesion") * 100'
plausible = { min = 0, max = 90 }
"""
FORMULA = """'volume of "Lesion" / (volume of "Liver" + volume of "Lesion") * 100'"""


def load(folder: Path, text: str) -> ModelContract:
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "inference.json").write_text("{}")
    file = folder / "contract.toml"
    file.write_text(text)
    return load_contract(file)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidConfiguration) as raised:
        load(folder, text)
    return [each.removeprefix(f"{folder}/contract.toml:") for each in raised.value.problems]


def test_measures_lesions_and_formulas_are_read(tmp_path: Path) -> None:
    contract = load(tmp_path, VALID)
    liver, lesion = contract.segments
    assert liver.measure == (MeasurementKind.VOLUME, MeasurementKind.LONG_AXIS, MeasurementKind.MEAN)
    assert (liver.lesions, lesion.lesions) == (None, LesionContract(minimum_ml=0.1, connectivity=18, most=20))
    (burden,) = contract.formulas
    assert (burden.name.meaning, burden.unit.value, burden.plausible) == (
        "Tumour burden",
        "%",
        Range(minimum=0, maximum=90),
    )
    assert set(measured_in(burden.formula)) == {Measured("volume", "Lesion"), Measured("volume", "Liver")}
    assert load(tmp_path, VALID.replace("{ minimum_ml = 0.1, connectivity = 18, most = 20 }", "{}")).segments[
        1
    ].lesions == LesionContract(minimum_ml=0.0, connectivity=26, most=100)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (FORMULA, "'volume of \"Liver'", "formulas[0].formula: character 11: the name of a segment in quot"),
        (FORMULA, "'1 +'", "formulas[0].formula: character 4: a number, a parenthesis or a measurement"),
        (FORMULA, "'2 * 3'", "formulas[0].formula: names no measurement: it is always the same number"),
        (FORMULA, "'volume of \"Livre\"'", "there is no segment 'Livre'; did you mean 'Liver'?"),
        (FORMULA, "'surface of \"Liver\"'", "'surface' of 'Liver' is not in its 'measure': 'long_axis', 'mean', "),
        (FORMULA, "'volum of \"Liver\"'", "'volum' is nothing that is measured; did you mean 'volume'?"),
        (FORMULA, "'diameter of \"Lesion\"'", "'diameter' is measured of each lesion of 'Lesion'; of all "),
        (FORMULA, "'count of \"Liver\"'", "'count' is nothing that is measured"),
        ('value = "%", scheme = "UCUM"', 'value = "%", scheme = "SCT"', "formulas[0].unit.scheme: units are "),
        ("min = 0, max = 90", "min = 91, max = 90", "formulas[0].plausible: min 91 is greater than max 90"),
        ("connectivity = 18", "connectivity = 8", "segments[1].lesions.connectivity: "),
        ("most = 20", "most = 0", "segments[1].lesions.most: "),
        ("most = 20", "atmost = 20", "segments[1].lesions.atmost: unknown key; did you mean 'most'?"),
        ('"diameter"]', '"diameter", "volume"]', "segments[1].measure[2]: 'volume' stands there already"),
        ('["volume", "diameter"]', '["diameter"]', "segments[1].measure: needs 'volume' as well: of an empty segment"),
        ('"diameter"]', '"area"]', "segments[1].measure: of volume, everything but 'area' can be measured"),
        ('name = "Lesion"', f'name = "{"L" * 60}"', "segments[1].name: with lesions, which are numbered"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in VALID
    line = VALID[: VALID.index(old)].count("\n") + 1
    found = problems(tmp_path, VALID.replace(old, new))
    assert any(each.startswith(f"{line}: ") and problem in each for each in found), found


def test_pictures_have_neither_lesions_nor_formulas(tmp_path: Path) -> None:
    pictures = VALID.replace('key = "image"', 'key = "image"\nkind = "pictures"').replace(
        '["volume", "diameter"]', '["area"]'
    )
    found = problems(tmp_path, pictures)
    assert any("segments[0].measure: of pictures, only 'area' can be measured" in each for each in found)
    assert any("segments[1].lesions: are counted in volumes" in each for each in found)
    assert any("formulas: are of segments in a volume" in each for each in found)
