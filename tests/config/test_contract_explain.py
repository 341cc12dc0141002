"""What a contract may ask for beside the answer, and for which kinds of model."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_contract_kinds import (
    CLASSIFICATION,
    DETECTION,
    HEAD,
    INPUT,
    REGRESSION,
    SCORES,
    SEGMENTATION,
    _load,
    _problems,
)

from meddaemon.domain.contract import (
    Augmentation,
    Explanation,
    Occasion,
    Saliency,
    present,
)
from meddaemon.inference.bundles.terms import Terms

AGE = HEAD.format(kind="regression") + INPUT.format(kind="volume", modality="MR") + SCORES
EXPLAIN = """
[explain]
method = "gradcam++"
layer = "features.norm5"
classes = ["air", "other"]
when = "positive"
"""


def test_nothing_is_kept_that_was_not_asked_for(tmp_path: Path) -> None:
    contract = _load(tmp_path, CLASSIFICATION)
    assert (contract.explanation, contract.kept_probabilities) == (Explanation(), ())
    assert not contract.augmentation


def test_a_classifier_can_be_explained(tmp_path: Path) -> None:
    assert _load(tmp_path, CLASSIFICATION + EXPLAIN).explanation == Explanation(
        method=Saliency.GRADCAM_PLUS_PLUS, layer="features.norm5", classes=("air", "other"), when=Occasion.POSITIVE
    )
    explained = _load(tmp_path, AGE + '[explain]\nmethod = "occlusion"\nclasses = ["Current chronological age"]\n')
    assert explained.explanation.method is Saliency.OCCLUSION


def test_probabilities_are_kept_of_all_segments_or_of_those_that_are_named(tmp_path: Path) -> None:
    assert _load(tmp_path, "keep_probabilities = true\n" + SEGMENTATION).kept_probabilities == (1,)
    assert _load(tmp_path, 'keep_probabilities = ["Brain"]\n' + SEGMENTATION).kept_probabilities == (1,)
    assert _load(tmp_path, "keep_probabilities = false\n" + SEGMENTATION).kept_probabilities == ()


def test_a_model_can_be_asked_again_flipped_and_turned(tmp_path: Path) -> None:
    text = SEGMENTATION + '[augmentation]\nflips = ["x", "xy"]\nrotations = [90, 270]\nspread = true\n'
    assert _load(tmp_path, text).augmentation == Augmentation(flips=("x", "xy"), rotations=(90, 270), spread=True)


@pytest.mark.parametrize("extra", [EXPLAIN, '[augmentation]\nflips = ["x", "y"]\nrotations = [180]\n'])
def test_the_model_process_is_told_all_of_it(tmp_path: Path, extra: str) -> None:
    terms = Terms.of(_load(tmp_path, CLASSIFICATION + extra))
    assert [each.name for each in terms.asked.answers] == ["air", "one", "other"]
    assert Terms.from_message(terms.message()) == terms
    kept = Terms.of(_load(tmp_path, "keep_probabilities = true\n" + SEGMENTATION))
    assert kept.asked.kept == ((1, "Brain"),)
    assert Terms.from_message(kept.message()) == kept


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            SEGMENTATION + '[explain]\nmethod = "gradcam"\n',
            "explain: shows what a classifier or a regression looked at: a model of kind 'segmentation' has none",
        ),
        (REGRESSION + '[explain]\nmethod = "gradcam"\n', "explain: shows places in an image, which a waveform is not"),
        (CLASSIFICATION + '[explain]\nmethod = "gradcan"\n', "explain.method: "),
        (
            CLASSIFICATION + EXPLAIN.replace('"other"', '"othr"'),
            "explain.classes[1]: no class or score is called 'othr'; did you mean 'other'?",
        ),
        (CLASSIFICATION + EXPLAIN.replace('"other"', '"air"'), "explain.classes[1]: 'air' stands there already"),
        (CLASSIFICATION + EXPLAIN.replace("gradcam++", "none"), "explain.method: is 'none'"),
        (CLASSIFICATION + EXPLAIN.replace("gradcam++", "occlusion"), "explain.layer: is for Grad-CAM"),
        (CLASSIFICATION + EXPLAIN.replace("method", "methode"), "explain.methode: unknown key; did you mean 'method'?"),
        (AGE + '[explain]\nmethod = "gradcam"\nwhen = "positive"\n', "explain.when: a number is neither positive"),
        (
            "keep_probabilities = true\n" + DETECTION,
            "keep_probabilities: are those of the voxels of segments: a model of kind 'detection' has none",
        ),
        ('keep_probabilities = ["Brian"]\n' + SEGMENTATION, "did you mean 'Brain'?"),
        (
            DETECTION + '[augmentation]\nflips = ["x"]\n',
            "augmentation: averages numbers and segments: what a model of kind 'detection' finds has no average",
        ),
        (
            REGRESSION + '[augmentation]\nflips = ["x"]\n',
            "augmentation: flips and turns images, which a waveform is not",
        ),
        (SEGMENTATION + "[augmentation]\nspread = true\n", "augmentation: augments nothing: say flips or rotations"),
        (SEGMENTATION + '[augmentation]\nflips = ["x", "x"]\n', "augmentation: says the same twice"),
        (SEGMENTATION + '[augmentation]\nflips = ["w"]\n', "augmentation.flips[0]: "),
        (SEGMENTATION + "[augmentation]\nrotations = [45]\n", "augmentation.rotations[0]: "),
        (
            CLASSIFICATION + '[augmentation]\nflips = ["x", "xz"]\n',
            "augmentation.flips[1]: 'xz': a picture has the axes x and y",
        ),
        (CLASSIFICATION + '[augmentation]\nflips = ["x"]\nspread = true\n', "augmentation.spread: is kept of"),
    ],
)
def test_what_a_kind_of_model_cannot_have_is_refused_by_line(tmp_path: Path, text: str, problem: str) -> None:
    found = _problems(tmp_path, text)
    assert any(each.partition(": ")[0].isdecimal() and problem in each for each in found), found


_ANSWER = st.tuples(st.sampled_from(["", "g", "h"]), st.none() | st.floats(0, 1))


@given(st.lists(st.tuples(st.floats(0, 1), _ANSWER), max_size=8))
def test_of_each_group_at_most_one_is_there_and_none_below_its_threshold(
    scored: list[tuple[float, tuple[str, float | None]]],
) -> None:
    scores, answers = [score for score, _ in scored], [answer for _, answer in scored]
    found = present(scores, answers)
    for name in ("g", "h"):
        assert sum(there for there, (group, _) in zip(found, answers, strict=True) if group == name) <= 1
    for there, score, (_, threshold) in zip(found, scores, answers, strict=True):
        assert not there or score >= (threshold or 0)
