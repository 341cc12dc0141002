"""Contracts of models that do more than draw: what they may say, and what is wrong with what they say."""

from pathlib import Path

import pytest

from meddaemon.config.contracts import load_contract
from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import Equals
from meddaemon.domain.contract import (
    BoxFrame,
    ClassContract,
    Combine,
    Duplicates,
    GeometryPolicy,
    InputKind,
    InputLimits,
    MeasurementKind,
    Mixed,
    ModelContract,
    ModelKind,
    ObjectContract,
    OutputLimits,
    Range,
    ScoreContract,
    Times,
    Unevenness,
    Voi,
)
from meddaemon.domain.errors import InvalidConfiguration

HEAD = """\
name = "model"
title = "Model"
version = "1.0"
manufacturer = "nobody"
kind = "{kind}"
"""
INPUT = """
[[inputs]]
key = "image"
kind = "{kind}"
series = {{ attribute = "Modality", equals = "{modality}" }}
"""
PNEUMOTHORAX = '{ value = "36118008", scheme = "SCT", meaning = "Pneumothorax" }'
NODULE = '{ value = "27925004", scheme = "SCT", meaning = "Nodule" }'
CLASSES = f"""
[[classes]]
name = "air"
finding = {PNEUMOTHORAX}
threshold = 0.25

[[classes]]
name = "one"
finding = {NODULE}
group = "size"

[[classes]]
name = "other"
finding = {NODULE}
group = "size"
"""
SCORES = """
[[scores]]
name = { value = "424144002", scheme = "SCT", meaning = "Current chronological age" }
unit = { value = "a", scheme = "UCUM", meaning = "Year" }
plausible = { min = 0, max = 120 }
"""
OBJECTS = f"""
[[objects]]
label = 0
name = "Nodule"
finding = {NODULE}
threshold = 0.5
"""
SEGMENTS = """
[[segments]]
label = 1
name = "Brain"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "12738006", scheme = "SCT", meaning = "Brain" }
colour = [200, 100, 0]
"""

CLASSIFICATION = HEAD.format(kind="classification") + INPUT.format(kind="pictures", modality="CR") + CLASSES
DETECTION = HEAD.format(kind="detection") + INPUT.format(kind="volume", modality="CT") + OBJECTS
REGRESSION = HEAD.format(kind="regression") + INPUT.format(kind="waveform", modality="ECG") + SCORES
SEGMENTATION = HEAD.format(kind="segmentation") + INPUT.format(kind="volume", modality="MR") + SEGMENTS


def _load(folder: Path, text: str) -> ModelContract:
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "inference.json").write_text("{}")
    file = folder / "contract.toml"
    file.write_text(text)
    return load_contract(file)


def _problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidConfiguration) as raised:
        _load(folder, text)
    return [each.removeprefix(f"{folder}/contract.toml:") for each in raised.value.problems]


def test_classes_keep_their_order_thresholds_and_groups(tmp_path: Path) -> None:
    contract = _load(tmp_path, CLASSIFICATION)
    assert (contract.kind, contract.segments) == (ModelKind.CLASSIFICATION, ())
    nodule = Code(value="27925004", scheme="SCT", meaning="Nodule")
    air, one, other = contract.classes
    assert (air.name, air.threshold, air.group) == ("air", 0.25, "")
    assert one == ClassContract(name="one", finding=nodule, group="size")
    assert other.name == "other"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (REGRESSION, "is for the scores of several pictures or slices"),
        (SEGMENTATION, "is for the scores of several pictures or slices"),
        (CLASSIFICATION, "the highest scores of classes that exclude each other do not add up to 1"),
    ],
)
def test_scores_are_combined_only_where_there_are_several(tmp_path: Path, text: str, problem: str) -> None:
    (found,) = _problems(tmp_path, 'combine = "max"\n' + text)
    assert problem in found


def test_what_becomes_of_the_scores_of_several_pictures(tmp_path: Path) -> None:
    assert _load(tmp_path, CLASSIFICATION).combine is Combine.REFUSE
    assert _load(tmp_path, 'combine = "each"\n' + CLASSIFICATION).combine is Combine.EACH
    slices = CLASSIFICATION.replace('"pictures"', '"slices"').replace("voi", "#voi")
    (found,) = _problems(tmp_path, slices)
    assert 'slices have a score each: say "mean", "max" or "each"' in found
    assert _load(tmp_path, 'combine = "mean"\n' + slices).combine is Combine.MEAN


def test_segments_on_pictures_are_measured_by_their_area(tmp_path: Path) -> None:
    pictures = SEGMENTATION.replace('"volume"', '"pictures"').replace('"MR"', '"DX"')
    assert _load(tmp_path, pictures).segments[0].measure == (MeasurementKind.AREA,)
    assert _load(tmp_path, SEGMENTATION).segments[0].measure == (MeasurementKind.VOLUME,)
    (found,) = _problems(tmp_path, pictures + 'measure = ["volume"]\n')
    assert "segments[0].measure: of pictures, only 'area' can be measured" in found
    (found,) = _problems(tmp_path, SEGMENTATION + 'measure = ["area"]\n')
    assert "of volume, everything but 'area' can be measured" in found
    (found,) = _problems(tmp_path, pictures + "plausible_volume_ml = { min = 1, max = 2 }\n")
    assert "segments on pictures have no volume" in found


def test_a_score_has_a_name_a_unit_and_limits(tmp_path: Path) -> None:
    (score,) = _load(tmp_path, REGRESSION).scores
    assert score == ScoreContract(
        name=Code(value="424144002", scheme="SCT", meaning="Current chronological age"),
        unit=Code(value="a", scheme="UCUM", meaning="Year"),
        plausible=Range(minimum=0, maximum=120),
    )


@pytest.mark.parametrize("kind", [ModelKind.DETECTION, ModelKind.LANDMARKS])
def test_objects_say_in_which_frame_they_are(tmp_path: Path, kind: ModelKind) -> None:
    text = DETECTION.replace('"detection"', f'"{kind}"\nframe = "lps"')
    contract = _load(tmp_path, text)
    assert (contract.kind, contract.frame) == (kind, BoxFrame.LPS)
    nodule = Code(value="27925004", scheme="SCT", meaning="Nodule")
    assert contract.objects == (ObjectContract(label=0, name="Nodule", finding=nodule, threshold=0.5),)


def test_what_is_not_said_stays_as_it_was(tmp_path: Path) -> None:
    contract = _load(tmp_path, SEGMENTATION.replace('kind = "segmentation"\n', "").replace('kind = "volume"\n', ""))
    assert contract.kind is ModelKind.SEGMENTATION
    assert contract.output_limits == OutputLimits()
    (only,) = contract.inputs
    assert (only.kind, only.name, only.slot, only.voi, only.unit) == (
        InputKind.VOLUME,
        "image",
        "image",
        Voi.NONE,
        "",
    )
    assert (only.limits, only.extra) == (InputLimits(), {})
    assert (contract.configs, contract.memory_bytes, contract.cpu_fallback) == ((), None, True)


def test_every_new_key_reaches_the_domain(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference_trt.json").write_text("{}")
    more = """
voi = "window"
[inputs.limits]
modalities = ["CT", "PT"]
attributes = { BodyPartExamined = ["HEAD", "BRAIN"] }
spacing_mm = { min = 0.5, max = 3 }
extent_mm = { min = 100 }
planes = { max = 500 }
intensity = { min = -1100, max = 3000 }
[inputs.extra]
prompt = [1, 2]
nested = { deep = [true, "x", 0.5] }
"""
    text = CLASSIFICATION.replace(
        '"classification"\n',
        '"classification"\nconfigs = ["inference_trt.json"]\nmemory_bytes = 8_000_000_000\ncpu_fallback = false\n',
    )
    text = text.replace("\n[[classes]]", more + "\n[[classes]]", 1)
    contract = _load(tmp_path, text + "\n[output_limits]\nmay_be_empty = true\nmaximum_foreground = 0.5\n")
    assert (contract.configs, contract.memory_bytes, contract.cpu_fallback) == (
        ("inference_trt.json",),
        8_000_000_000,
        False,
    )
    assert contract.output_limits == OutputLimits(may_be_empty=True, maximum_foreground=0.5)
    (only,) = contract.inputs
    assert (only.kind, only.voi, only.unit) == (InputKind.PICTURES, Voi.WINDOW, "")
    assert only.limits == InputLimits(
        modalities=("CT", "PT"),
        attributes={"BodyPartExamined": ("HEAD", "BRAIN")},
        spacing_mm=Range(minimum=0.5, maximum=3),
        extent_mm=Range(minimum=100),
        planes=Range(maximum=500),
        intensity=Range(minimum=-1100, maximum=3000),
    )
    assert only.extra == {"prompt": [1, 2], "nested": {"deep": [True, "x", 0.5]}}


def test_several_series_are_channels_of_one_key(tmp_path: Path) -> None:
    channel = '\n[[inputs]]\nkey = "image"\nname = "{name}"\nseries = {{ attribute = "Modality", equals = "{name}" }}\n'
    text = HEAD.format(kind="segmentation") + channel.format(name="MR") + channel.format(name="CT") + SEGMENTS
    contract = _load(tmp_path, text)
    assert [(each.key, each.slot) for each in contract.inputs] == [("image", "MR"), ("image", "CT")]
    assert [each.series for each in contract.inputs] == [
        Equals(attribute="Modality", value="MR"),
        Equals(attribute="Modality", value="CT"),
    ]
    assert _problems(tmp_path, text.replace('name = "CT"', 'name = "MR"')) == [
        "14: inputs[1].name: 'MR' stands there already in inputs[0]"
    ]


def test_a_volume_may_be_straightened_and_in_suv(tmp_path: Path) -> None:
    more = 'key = "image"\ngeometry = { tilt = "resample", irregular = "resample" }\nunit = "SUVbw"'
    (only,) = _load(tmp_path, SEGMENTATION.replace('key = "image"', more)).inputs
    assert only.geometry == GeometryPolicy(tilt=Unevenness.RESAMPLE, irregular=Unevenness.RESAMPLE)
    assert only.unit == "SUVbw"
    assert only.padding is None


def test_a_series_may_be_taken_apart_and_its_padding_replaced(tmp_path: Path) -> None:
    more = (
        'key = "image"\npadding = -1024\n'
        'geometry = { gap = "resample", mixed = "largest", at = { EchoTime = 30 }, time = "last", duplicates = "drop" }'
    )
    (only,) = _load(tmp_path, SEGMENTATION.replace('key = "image"', more)).inputs
    assert only.geometry == GeometryPolicy(
        gap=Unevenness.RESAMPLE, mixed=Mixed.LARGEST, at={"EchoTime": 30.0}, time=Times.LAST, duplicates=Duplicates.DROP
    )
    assert only.padding == -1024


@pytest.mark.parametrize(
    ("text", "old", "new", "problem"),
    [
        (SEGMENTATION, 'key = "image"', 'key = "image"\npadding = "drop"', "padding"),
        (SEGMENTATION, 'key = "image"', 'key = "image"\npadding = nan', "padding"),
        (
            SEGMENTATION,
            'key = "image"',
            'key = "image"\npadding = 0\nunit = "SUVbw"',
            "stands for real-world values, not for SUVbw",
        ),
        (
            SEGMENTATION,
            'key = "image"',
            'key = "image"\ngeometry = { time = "middle" }',
            "should be 'refuse', 'first' or 'last'",
        ),
        (
            SEGMENTATION,
            'key = "image"',
            'key = "image"\ngeometry = { at = { RepetitionTime = 30 } }',
            "geometry.at.RepetitionTime: should be one of TemporalPositionIdentifier, EchoTime",
        ),
        (CLASSIFICATION, '"classification"', '"clasification"', "5: kind: should be 'segmentation', 'classification'"),
        (CLASSIFICATION, '"classification"', '"regression"', "a model of kind 'regression' needs at least one of"),
        (
            CLASSIFICATION,
            '"classification"',
            '"regression"',
            "classes: a model of kind 'regression' has [[scores]], no",
        ),
        (SEGMENTATION, '"volume"', '"cine"', "9: inputs[0].kind: segments lie in the volume or on the pictures"),
        (CLASSIFICATION, "threshold = 0.25\n", "", "12: classes[0]: needs a threshold from 0 to 1, or a group"),
        (CLASSIFICATION, "0.25", "1.5", "15: classes[0].threshold: should be less than or equal to 1, not 1.5"),
        (CLASSIFICATION, '"other"\n', '"one"\n', "23: classes[2].name: 'one' stands there already in classes[1]"),
        (
            CLASSIFICATION.rsplit("[[classes]]", 1)[0],
            "",
            "",
            "20: classes[1].group: 'size' has no other class: nothing excludes this one",
        ),
        (CLASSIFICATION, '"Pneumothorax"', '"Nodule"', "14: classes[0].finding.meaning: SCT 36118008 means"),
        (CLASSIFICATION, '"36118008", scheme = "SCT"', '"999999", scheme = "DCM"', "DCM 999999 is not in PS3.16"),
        (CLASSIFICATION, 'scheme = "SCT"', 'scheme = "SNOMED"', "'SNOMED' is not a known Coding Scheme Designator"),
        (CLASSIFICATION, 'key = "image"', 'key = "image"\nunit = "SUVbw"', "inputs[0].unit: is of volumes and slices"),
        (CLASSIFICATION, 'key = "image"', 'key = "image"\nvoi = "widow"', "9: inputs[0].voi: should be 'none' or"),
        (CLASSIFICATION, '"nobody"', '"nobody"\nframe = "ras"', "5: frame: is that of boxes and landmarks"),
        (CLASSIFICATION, '"nobody"', '"nobody"\nmemory_bytes = 0', "5: memory_bytes: should be greater than 0"),
        (CLASSIFICATION, '"nobody"', '"nobody"\nconfigs = ["../x.json"]', "5: configs[0]: should match"),
        (CLASSIFICATION, '"nobody"', '"nobody"\nconfigs = ["x.json"]', "5: configs[0]: "),
        (
            CLASSIFICATION,
            'key = "image"',
            'key = "image"\nlimits = { planes = { min = 5, max = 4 } }',
            "9: inputs[0].limits.planes: min 5 is greater than max 4",
        ),
        (
            CLASSIFICATION,
            'key = "image"',
            'key = "image"\nlimits = { plane = { min = 5 } }',
            "9: inputs[0].limits.plane: unknown key; did you mean 'planes'?",
        ),
        (CLASSIFICATION, 'key = "image"', 'key = "image"\nlimits = { intensity = {} }', "limits nothing: say min"),
        (
            CLASSIFICATION,
            'key = "image"',
            'key = "image"\nextra = { since = 2020-01-01 }',
            "inputs[0].extra.since: must",
        ),
        (
            CLASSIFICATION,
            'key = "image"',
            'key = "image"\ngeometry = { tilt = "resample" }',
            "9: inputs[0].geometry: is of volumes, not of kind 'pictures'",
        ),
        (
            DETECTION,
            'key = "image"',
            'key = "image"\ngeometry = { tilt = "maybe" }',
            "should be 'refuse' or 'resample'",
        ),
        (
            DETECTION,
            'key = "image"',
            'key = "image"\nlimits = { attributes = { BodyPart = ["HEAD"] } }',
            "9: inputs[0].limits.attributes.BodyPart: 'BodyPart' is no DICOM keyword",
        ),
        (
            DETECTION,
            'key = "image"',
            'key = "image"\nlimits = { attributes = { instances = ["5"] } }',
            "'instances' is no DICOM keyword",
        ),
        (REGRESSION, '"UCUM"', '"SCT"', "scores[0].unit.scheme: units are of UCUM"),
        (REGRESSION, "max = 120", "max = -1", "scores[0].plausible: min 0 is greater than max -1"),
        (REGRESSION, 'key = "image"', 'key = "image"\nlimits = { planes = { min = 1 } }', "a waveform has none"),
        (REGRESSION, 'key = "image"', 'key = "image"\nvoi = "window"', "inputs[0].voi: is of pictures, not of kind"),
        (DETECTION, '"volume"', '"cube"', "9: inputs[0].kind: should be 'volume', 'pictures'"),
        (DETECTION, "label = 0", "label = -1", "objects[0].label: should be greater than or equal to 0"),
        (SEGMENTATION, '"Brain"\nc', '"Brain"\nthreshold = 1\nc', "segments[0].threshold: unknown key"),
        (
            SEGMENTATION + "[output_limits]\nmaximum_foreground = 0",
            "",
            "",
            "output_limits.maximum_foreground: should be greater than 0",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_its_line(tmp_path: Path, text: str, old: str, new: str, problem: str) -> None:
    assert any(problem in each for each in _problems(tmp_path, text.replace(old, new))), _problems(
        tmp_path, text.replace(old, new)
    )


def test_channels_are_volumes_and_extras_stand_with_the_first(tmp_path: Path) -> None:
    channel = (
        '\n[[inputs]]\nkey = "image"\nname = "{name}"\nkind = "{kind}"\n'
        'series = {{ attribute = "Modality", equals = "CT" }}\nextra = {{ x = 1 }}\n'
    )
    text = channel.format(name="one", kind="volume") + channel.format(name="two", kind="slices")
    assert _problems(tmp_path, HEAD.format(kind="segmentation") + text + SEGMENTS) == [
        "17: inputs[1].kind: the channels of 'image' must be volumes",
        "19: inputs[1].extra: stands with the first channel of 'image'",
    ]
