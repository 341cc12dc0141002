from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.domain.conditions import (
    ALWAYS,
    All,
    Any,
    Attributes,
    Condition,
    Contains,
    ContainsNot,
    Equals,
    InRange,
    Matches,
    Not,
    OneOf,
    Present,
    outcome_as_dict,
)
from meddaemon.domain.contract import GeometryPolicy, InputContract, InputKind, Mixed, ModelContract
from meddaemon.domain.rules import Rule
from meddaemon.domain.series import Instance, Series, SeriesKind, Study
from meddaemon.ingest.describe import describe_study
from meddaemon.ingest.matching import Decision, decide, decide_fallback

MR = Equals(attribute="Modality", value="MR")


# --- conditions ---------------------------------------------------------------------------------------------------

VALUE = {
    "Modality": (("MR",),),
    "ImageType": (("ORIGINAL", "PRIMARY", "M"), ("DERIVED", "PRIMARY", "M")),
    "EchoTime": (("2.5",), ("3",)),
    "PixelSpacing": (("0.5", "0.9"),),
    "Odd": (("nan",),),
    "Words": (("1_000",),),
    "Empty": ((),),
}
HOLDS: list[tuple[Condition, bool]] = [
    (Equals(attribute="Modality", value=" mr "), True),
    (Equals(attribute="Modality", value="M"), False),
    (Equals(attribute="ImageType", value=r"ORIGINAL\PRIMARY\M"), False),
    (Equals(attribute="PixelSpacing", value=r"0.5\0.9"), True),
    (OneOf(attribute="Modality", values=("CT", "mr")), True),
    (OneOf(attribute="Absent", values=("CT",)), False),
    (Matches(attribute="Modality", pattern="^m"), True),
    (Matches(attribute="Absent", pattern="^$"), True),
    (InRange(attribute="EchoTime", minimum=2.5, maximum=3), True),
    (InRange(attribute="EchoTime", minimum=2.6), False),
    (InRange(attribute="EchoTime", maximum=2.9), False),
    (InRange(attribute="PixelSpacing", minimum=0.5, maximum=0.9), True),
    (InRange(attribute="PixelSpacing", minimum=0.6), False),
    (InRange(attribute="Absent"), False),
    (InRange(attribute="Odd"), False),
    (InRange(attribute="Modality"), False),
    (Present(attribute="Modality"), True),
    (Present(attribute="Absent"), False),
    (Present(attribute="Empty", present=False), True),
    (Contains(attribute="ImageType", component="primary"), True),
    (Contains(attribute="ImageType", component="ORIGINAL"), False),  # not in every instance
    (ContainsNot(attribute="ImageType", component="DERIVED"), False),
    (ContainsNot(attribute="ImageType", component="LOCALIZER"), True),
    (ContainsNot(attribute="Absent", component="LOCALIZER"), True),
]


@pytest.mark.parametrize(("condition", "holds"), HOLDS)
def test_a_condition_holds_when_every_value_passes(condition: Condition, holds: bool) -> None:
    assert condition.evaluate(VALUE).held is holds


def test_an_outcome_says_what_was_asked_and_seen() -> None:
    outcome = All((MR, Not(InRange(attribute="EchoTime", minimum=1)))).evaluate(VALUE)
    assert outcome_as_dict(outcome) == {
        "held": False,
        "asked": "all of",
        "parts": [
            {"held": True, "asked": "Modality equals 'MR'", "seen": "MR"},
            {
                "held": False,
                "asked": "not",
                "parts": [{"held": True, "asked": "EchoTime in range 1 ≤ x", "seen": "2.5, 3"}],
            },
        ],
    }


def test_what_was_seen_is_bounded() -> None:
    values = {"Modality": tuple((f"{number}" * 100,) for number in range(9))}
    seen = MR.evaluate(values).seen
    assert seen.endswith(" and 5 more")
    assert len(seen) < 400


_values = st.lists(st.lists(st.sampled_from(["MR", "CT", "3", ""]), max_size=2).map(tuple), max_size=3).map(tuple)
_attributes = st.fixed_dictionaries({"Modality": _values, "EchoTime": _values})
_tests = st.sampled_from(
    [
        MR,
        InRange(attribute="EchoTime", maximum=4),
        Present(attribute="EchoTime"),
        Matches(attribute="Modality", pattern="M"),
    ]
)
_conditions = st.recursive(
    _tests,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: All(tuple(parts)))
        | st.lists(inner, max_size=3).map(lambda parts: Any(tuple(parts)))
        | inner.map(Not)
    ),
    max_leaves=6,
)


@given(_conditions, _conditions, _attributes)
def test_conditions_obey_the_laws_of_logic(one: Condition, other: Condition, attributes: Attributes) -> None:
    def held(condition: Condition) -> bool:
        return condition.evaluate(attributes).held

    assert held(All((one, other))) is (held(one) and held(other))
    assert held(Any((one, other))) is (held(one) or held(other))
    assert held(Not(one)) is not held(one)
    assert held(Not(All((one, other)))) is held(Any((Not(one), Not(other))))
    assert held(All(())) is True
    assert held(Any(())) is False
    assert All((one, Not(other))).keywords() == one.keywords() | other.keywords()


@given(_conditions, _attributes)
def test_every_part_is_evaluated_and_explained(condition: Condition, attributes: Attributes) -> None:
    def size(asked: Condition) -> int:
        if isinstance(asked, All | Any):
            return 1 + sum(map(size, asked.parts))
        return 1 + size(asked.part) if isinstance(asked, Not) else 1

    def told(outcome: dict[str, object]) -> int:
        return 1 + sum(map(told, outcome.get("parts", ())))  # type: ignore[arg-type]

    assert told(outcome_as_dict(condition.evaluate(attributes))) == size(condition)


# --- rules --------------------------------------------------------------------------------------------------------


def a_series(uid: str, *, planes: int = 3, kind: SeriesKind = SeriesKind.IMAGE, **attributes: str) -> Series:
    instances = tuple(
        Instance(
            sop_instance_uid=f"{uid}.{number}",
            sop_class_uid="1.2",
            transfer_syntax_uid="1.2",
            path=Path("/nowhere"),
            sha256=f"{number}",
            size=1,
        )
        for number in range(planes)
    )
    values: Attributes = {keyword: ((value,),) for keyword, value in {"Modality": "MR", **attributes}.items()}
    return Series(series_instance_uid=uid, kind=kind, attributes=values, instances=instances)


def a_study(*series: Series, **attributes: str) -> Study:
    values = {keyword: ((value,),) for keyword, value in attributes.items()}
    return Study(id=1, study_instance_uid="9", generation=1, attributes=values, series=series)


def a_model(name: str = "brain", *inputs: InputContract) -> ModelContract:
    return ModelContract(
        name=name,
        title=name,
        version="1",
        manufacturer="",
        bundle=Path(),
        contract_file=Path(),
        digest="",
        inputs=inputs or (InputContract(key="image", series=MR),),
        output="pred",
        segments=(),
    )


def chosen(decision: Decision) -> dict[str, dict[str, str]]:
    return {
        plan.model: {key: series.series_instance_uid for key, series in plan.inputs.items()} for plan in decision.plans
    }


@pytest.mark.fault(91)
def test_a_rule_runs_its_model_on_the_series_that_fits() -> None:
    decision = decide(
        Rule(name="r", models=("brain",)), a_study(a_series("1", Modality="CT"), a_series("2")), {"brain": a_model()}
    )
    assert decision.matched
    assert chosen(decision) == {"brain": {"image": "2"}}
    assert decision.reason == "brain: runs"
    asked = decision.detail["models"]["brain"]["image"]  # type: ignore[index]
    assert asked["chosen"] == "2"
    assert [(each["series_instance_uid"], each["fits"]) for each in asked["series"]] == [("1", False), ("2", True)]
    assert asked["series"][0]["model"]["seen"] == "CT"


def test_a_study_condition_that_does_not_hold_ends_the_matter() -> None:
    rule = Rule(name="r", models=("brain",), study=Equals(attribute="StudyDescription", value="head"))
    decision = decide(rule, a_study(a_series("1"), StudyDescription="knee"), {"brain": a_model()})
    assert not decision.matched
    assert decision.plans == ()
    assert decision.detail == {
        "study": {"held": False, "asked": "StudyDescription equals 'head'", "seen": "knee"},
    }


def test_the_series_condition_of_a_rule_narrows_the_chooser_of_the_model() -> None:
    rule = Rule(name="r", models=("brain",), series=Equals(attribute="SeriesDescription", value="T1"))
    study = a_study(a_series("1", SeriesDescription="T2", planes=9), a_series("2", SeriesDescription="T1"))
    assert chosen(decide(rule, study, {"brain": a_model()})) == {"brain": {"image": "2"}}
    assert not decide(rule, a_study(a_series("1", SeriesDescription="T2")), {"brain": a_model()}).matched


@pytest.mark.fault(84, 91)
@pytest.mark.parametrize("kind", sorted({*SeriesKind} - {SeriesKind.IMAGE, SeriesKind.WAVEFORM}))
def test_other_kinds_than_images_reach_a_model_only_when_admitted(kind: SeriesKind) -> None:
    study = a_study(a_series("1", kind=kind))
    decision = decide(Rule(name="r", models=("brain",)), study, {"brain": a_model()})
    assert not decision.matched
    assert decision.reason == "brain: no series for input image"
    (asked,) = decision.detail["models"]["brain"]["image"]["series"]  # type: ignore[index]
    assert asked["why"] == f"{kind.value} series reach a model only when the rule admits them"
    admitting = Rule(name="r", models=("brain",), admit=frozenset({kind}))
    assert chosen(decide(admitting, study, {"brain": a_model()})) == {"brain": {"image": "1"}}


@pytest.mark.fault(84)
def test_a_localizer_among_images_keeps_them_from_a_model_unless_its_contract_leaves_it_out() -> None:
    def described(*image_types: str) -> Study:
        headers = [
            {"Modality": ("MR",), "Rows": ("9",), "ImageType": ("ORIGINAL", "PRIMARY", each)} for each in image_types
        ]
        instances = tuple(
            replace(instance, header=header)
            for instance, header in zip(a_series("1", planes=len(headers)).instances, headers, strict=True)
        )
        return describe_study(study_id=1, study_instance_uid="9", generation=1, instances={"1": instances})

    leaving = InputContract(key="image", series=MR, geometry=GeometryPolicy(mixed=Mixed.LARGEST))
    rule, among = Rule(name="r", models=("brain",)), described("LOCALIZER", "M", "M")
    assert among.series[0].kind is SeriesKind.LOCALIZER
    assert not decide(rule, among, {"brain": a_model()}).matched
    assert chosen(decide(rule, among, {"brain": a_model("brain", leaving)})) == {"brain": {"image": "1"}}
    assert not decide(rule, described("LOCALIZER", "LOCALIZER"), {"brain": a_model("brain", leaving)}).matched
    assert not decide(rule, described("MOSAIC", "M"), {"brain": a_model("brain", leaving)}).matched


@pytest.mark.fault(91)
def test_a_waveform_fills_the_inputs_that_take_one_and_no_others() -> None:
    ecg = InputContract(key="signal", series=Equals(attribute="Modality", value="ECG"), kind=InputKind.WAVEFORM)
    study = a_study(a_series("1", Modality="ECG"), a_series("2", Modality="ECG", kind=SeriesKind.WAVEFORM))
    rule = Rule(name="r", models=("ecg",), admit=frozenset({SeriesKind.WAVEFORM, SeriesKind.LOCALIZER}))
    decision = decide(rule, study, {"ecg": a_model("ecg", ecg)})
    assert chosen(decision) == {"ecg": {"signal": "2"}}
    image, _ = decision.detail["models"]["ecg"]["signal"]["series"]  # type: ignore[index]
    assert image["why"] == "image series do not fill an input of kind waveform"
    assert not decide(
        rule, a_study(a_series("2", Modality="ECG", kind=SeriesKind.WAVEFORM)), {"ecg": a_model()}
    ).matched


def test_several_series_fill_one_key_as_channels() -> None:
    names = ("T1", "T2", "FLAIR")
    channels = (
        InputContract(key="image", name=name, series=Equals(attribute="SeriesDescription", value=name))
        for name in names
    )
    study = a_study(*(a_series(str(number), SeriesDescription=name) for number, name in enumerate(names)))
    models = {"brain": a_model("brain", *channels)}
    decision = decide(Rule(name="r", models=("brain",)), study, models)
    assert chosen(decision) == {"brain": {"T1": "0", "T2": "1", "FLAIR": "2"}}
    lacking = decide(Rule(name="r", models=("brain",)), a_study(*study.series[:2]), models)
    assert lacking.reason == "brain: no series for input FLAIR"


def test_preferences_come_first_then_planes_then_the_uid() -> None:
    wanted = InputContract(
        key="image",
        series=MR,
        prefer=(
            Equals(attribute="MRAcquisitionType", value="3D"),
            Present(attribute="ContrastBolusAgent", present=False),
        ),
    )
    model = {"brain": a_model("brain", wanted)}
    rule = Rule(name="r", models=("brain",))
    three_d, plain, gd = (
        a_series("3", MRAcquisitionType="3D", ContrastBolusAgent="Gd", planes=2),
        a_series("2", planes=5),
        a_series("1", ContrastBolusAgent="Gd", planes=99),
    )
    assert chosen(decide(rule, a_study(gd, plain, three_d), model)) == {"brain": {"image": "3"}}
    assert chosen(decide(rule, a_study(gd, plain), model)) == {"brain": {"image": "2"}}
    assert chosen(decide(rule, a_study(a_series("7", planes=2), a_series("8", planes=3)), model)) == {
        "brain": {"image": "8"}
    }
    assert chosen(decide(rule, a_study(a_series("8"), a_series("7")), model)) == {"brain": {"image": "7"}}


def test_several_models_of_a_rule_are_decided_each_for_itself() -> None:
    lung = a_model("lung", InputContract(key="image", series=Equals(attribute="Modality", value="CT")))
    decision = decide(
        Rule(name="r", models=("brain", "lung")), a_study(a_series("1")), {"brain": a_model(), "lung": lung}
    )
    assert decision.matched
    assert chosen(decision) == {"brain": {"image": "1"}}
    assert decision.reason == "brain: runs; lung: no series for input image"


def test_a_model_of_several_inputs_runs_only_when_each_is_filled() -> None:
    model = a_model(
        "tumour",
        *(InputContract(key=key, series=Equals(attribute="SeriesDescription", value=key)) for key in ("t1", "flair")),
    )
    rule = Rule(name="r", models=("tumour",))
    t1, flair = a_series("1", SeriesDescription="T1"), a_series("2", SeriesDescription="FLAIR")
    assert chosen(decide(rule, a_study(t1, flair), {"tumour": model})) == {"tumour": {"t1": "1", "flair": "2"}}
    decision = decide(rule, a_study(t1), {"tumour": model})
    assert not decision.matched
    assert decision.reason == "tumour: no series for input flair"


def test_a_fallback_is_decided_only_when_nothing_else_matched() -> None:
    rule, study, contracts = (
        Rule(name="f", models=("brain",), fallback=True),
        a_study(a_series("1")),
        {"brain": a_model()},
    )
    assert decide_fallback(rule, study, contracts, []).matched
    passed_over = decide_fallback(rule, study, contracts, ["first", "second"])
    assert not passed_over.matched
    assert passed_over.reason == "fallback not needed: first, second matched"


def test_a_study_without_series_matches_nothing() -> None:
    assert not decide(Rule(name="r", models=("brain",), study=ALWAYS), a_study(), {"brain": a_model()}).matched
