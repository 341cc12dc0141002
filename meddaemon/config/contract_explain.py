"""What a contract file asks for beside the answer: saliency maps, probabilities, and how sure the answer is."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from meddaemon.config.contract_inputs import InputTable
from meddaemon.config.contract_terms import LongString, Strict
from meddaemon.config.problems import Problems, did_you_mean
from meddaemon.config.toml_file import Keys
from meddaemon.domain.contract import Augmentation, Explanation, InputKind, ModelKind, Occasion, Saliency
from meddaemon.domain.result import MAX_ARTEFACTS

_SCORED = (ModelKind.CLASSIFICATION, ModelKind.REGRESSION)
_AVERAGED = (*_SCORED, ModelKind.SEGMENTATION)
_PLACELESS = {InputKind.WAVEFORM: "a waveform", InputKind.CINE: "a cine"}
_FLAT = {InputKind.PICTURES: "a picture", InputKind.SLICES: "a slice"}

_Flip = Annotated[str, Field(pattern=r"^(x|y|z|xy|xz|yz|xyz)$")]


class ExplainTable(Strict):
    """The table `[explain]`."""

    method: Annotated[Saliency, Field(strict=False)]
    layer: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")] = ""
    classes: tuple[LongString, ...] = ()
    when: Annotated[Occasion, Field(strict=False)] = Occasion.ALWAYS

    def as_contract(self) -> Explanation:
        """Return the explanation as the domain speaks of it."""
        return Explanation(method=self.method, layer=self.layer, classes=self.classes, when=self.when)


class AugmentationTable(Strict):
    """The table `[augmentation]`."""

    flips: tuple[_Flip, ...] = ()
    rotations: tuple[Literal[90, 180, 270], ...] = ()
    spread: bool = False

    def as_contract(self) -> Augmentation:
        """Return the augmentation as the domain speaks of it."""
        return Augmentation(flips=self.flips, rotations=self.rotations, spread=self.spread)


class ExplainTables(BaseModel):
    """What is kept beside the answer, each for the kinds of model that can have it."""

    explain: ExplainTable | None = None
    keep_probabilities: bool | Annotated[tuple[LongString, ...], Field(min_length=1)] = False
    augmentation: AugmentationTable | None = None

    @property
    def explanation(self) -> Explanation:
        """The table `[explain]`, or what is without it: nothing."""
        return self.explain.as_contract() if self.explain else Explanation()

    @property
    def augmented(self) -> Augmentation:
        """The table `[augmentation]`, or what is without it: nothing."""
        return self.augmentation.as_contract() if self.augmentation else Augmentation()

    def kept(self, segments: Sequence[tuple[int, str]]) -> tuple[int, ...]:
        """Return the labels of the segments of which the probabilities are kept, given label and name of each."""
        wanted = self.keep_probabilities
        return tuple(label for label, name in segments if (wanted if isinstance(wanted, bool) else name in wanted))

    def check_explanation(
        self,
        kind: ModelKind,
        inputs: Sequence[InputTable],
        answers: Sequence[str],
        segments: Sequence[str],
        problems: Problems,
    ) -> None:
        """Note what a model of this kind, with such inputs, cannot have, and names that the contract does not have.

        `answers` are the names of the classes or scores, `segments` those of the segments.
        """
        first = inputs[0].kind if inputs else InputKind.VOLUME
        if self.explain is not None:
            _check_explain(self.explain, kind, first, answers, problems)
        if self.keep_probabilities:
            self._check_kept(kind, segments, problems)
        if self.augmentation is not None:
            _check_augmentation(self.augmentation, kind, first, problems)

    def _check_kept(self, kind: ModelKind, segments: Sequence[str], problems: Problems) -> None:
        keys: Keys = ("keep_probabilities",)
        if kind is not ModelKind.SEGMENTATION:
            problems.add(keys, f"are those of the voxels of segments: a model of kind {kind.value!r} has none")
            return
        wanted = segments if isinstance(self.keep_probabilities, bool) else self.keep_probabilities
        _check_names(wanted, segments, keys, "segment", problems)
        if len(wanted) > MAX_ARTEFACTS:
            problems.add(keys, f"are of {len(wanted)} segments, and at most {MAX_ARTEFACTS} are kept: name those")


def _check_explain(
    asked: ExplainTable, kind: ModelKind, first: InputKind, answers: Sequence[str], problems: Problems
) -> None:
    if kind not in _SCORED:
        problems.add(
            ("explain",), f"shows what a classifier or a regression looked at: a model of kind {kind.value!r} has none"
        )
    elif first in _PLACELESS:
        problems.add(("explain",), f"shows places in an image, which {_PLACELESS[first]} is not")
    if asked.method is Saliency.NONE and (asked.layer or asked.classes or asked.when is not Occasion.ALWAYS):
        problems.add(("explain", "method"), "is 'none': layer, classes and when say nothing then")
    if asked.layer and asked.method is Saliency.OCCLUSION:
        problems.add(("explain", "layer"), "is for Grad-CAM: occlusion needs none")
    if asked.when is Occasion.POSITIVE and kind is ModelKind.REGRESSION:
        problems.add(("explain", "when"), "a number is neither positive nor negative: only a class is found or not")
    if kind in _SCORED:
        _check_names(asked.classes, answers, ("explain", "classes"), "class or score", problems)


def _check_augmentation(asked: AugmentationTable, kind: ModelKind, first: InputKind, problems: Problems) -> None:
    keys: Keys = ("augmentation",)
    if kind not in _AVERAGED:
        problems.add(keys, f"averages numbers and segments: what a model of kind {kind.value!r} finds has no average")
    elif first in _PLACELESS:
        problems.add(keys, f"flips and turns images, which {_PLACELESS[first]} is not")
    if not asked.flips and not asked.rotations:
        problems.add(keys, "augments nothing: say flips or rotations")
    if len({*asked.flips, *asked.rotations}) < len(asked.flips) + len(asked.rotations):
        problems.add(keys, "says the same twice")
    for index, each in enumerate(asked.flips):
        if re.search("z", each) and first in _FLAT:
            problems.add((*keys, "flips", index), f"{each!r}: {_FLAT[first]} has the axes x and y")
    if asked.spread and kind is not ModelKind.SEGMENTATION:
        problems.add(
            (*keys, "spread"), "is kept of the voxels of segments; that of a number is reported with it always"
        )


def _check_names(wanted: Sequence[str], known: Sequence[str], keys: Keys, what: str, problems: Problems) -> None:
    for index, name in enumerate(wanted):
        if name not in known:
            problems.add((*keys, index), f"no {what} is called {name!r}{did_you_mean(name, known)}")
        if name in wanted[:index]:
            problems.add((*keys, index), f"{name!r} stands there already")
