"""What a contract asks for beside the answer, as the model child is told it. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from meddaemon.domain.contract import Augmentation, Explanation, ModelContract, Occasion, Saliency


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One number that the network gives: its name, and when it says that something is there."""

    name: str
    group: str = ""
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be kept, and how often the network is asked.

    `answers` are the numbers in the order of the contract. `kept` are label and name of the segments of which the
    probability of each voxel is kept, `named` those of all segments.
    """

    explanation: Explanation = field(default_factory=Explanation)
    answers: tuple[Answer, ...] = ()
    kept: tuple[tuple[int, str], ...] = ()
    named: tuple[tuple[int, str], ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)

    @classmethod
    def of(cls, contract: ModelContract) -> Self:
        """Return what a contract asks for."""
        named = tuple((each.label, each.name) for each in contract.segments)
        return cls(
            explanation=contract.explanation,
            answers=(
                *(Answer(name=each.name, group=each.group, threshold=each.threshold) for each in contract.classes),
                *(Answer(name=each.name.meaning) for each in contract.scores),
            ),
            kept=tuple(each for each in named if each[0] in contract.kept_probabilities),
            named=named,
            augmentation=contract.augmentation,
        )

    def message(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Return what `message` made these values of."""
        explanation, augmentation = message["explanation"], message["augmentation"]
        return cls(
            explanation=Explanation(
                method=Saliency(explanation["method"]),
                layer=str(explanation["layer"]),
                classes=tuple(map(str, explanation["classes"])),
                when=Occasion(explanation["when"]),
            ),
            answers=tuple(
                Answer(
                    name=str(each["name"]),
                    group=str(each["group"]),
                    threshold=None if each["threshold"] is None else float(each["threshold"]),
                )
                for each in message["answers"]
            ),
            kept=tuple((int(label), str(name)) for label, name in message["kept"]),
            named=tuple((int(label), str(name)) for label, name in message["named"]),
            augmentation=Augmentation(
                flips=tuple(map(str, augmentation["flips"])),
                rotations=tuple(map(int, augmentation["rotations"])),
                spread=bool(augmentation["spread"]),
            ),
        )


NOTHING = Asked()
"""The answer alone."""
