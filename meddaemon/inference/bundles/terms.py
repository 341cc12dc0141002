"""What a contract says that a bundle itself does not: which input feeds which key, and what comes out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from meddaemon.domain.contract import (
    BoxFrame,
    Combine,
    Engine,
    EngineContract,
    InputKind,
    ModelContract,
    ModelKind,
    Precision,
    WindowSize,
)
from meddaemon.inference.bundles.asked import NOTHING, Asked


@dataclass(frozen=True, kw_only=True)
class Feed:
    """One input: its `name` among the inputs of a job, and the `key` of the bundle's data dictionary that it fills.

    Feeds of one key are its channels, in order. `extra` is put beside the image.
    """

    name: str
    key: str
    kind: InputKind = InputKind.VOLUME
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a session must know of the contract.

    `segments` are the labels of the segments, `outputs` the number of classes or of regressed numbers (0: as many as
    there are), `asked` what is kept beside the answer. Without `feeds`, every input is a volume under the key that is
    its name.
    """

    output: str = "pred"
    kind: ModelKind = ModelKind.SEGMENTATION
    feeds: tuple[Feed, ...] = ()
    segments: tuple[int, ...] = ()
    outputs: int = 0
    combine: Combine = Combine.REFUSE
    frame: BoxFrame = BoxFrame.RAS
    configs: tuple[str, ...] = ()
    asked: Asked = NOTHING
    engine: EngineContract = field(default_factory=EngineContract)

    @classmethod
    def of(cls, contract: ModelContract) -> Self:
        """Return the terms of a contract."""
        numbers = {ModelKind.CLASSIFICATION: len(contract.classes), ModelKind.REGRESSION: len(contract.scores)}
        return cls(
            output=contract.output,
            kind=contract.kind,
            feeds=tuple(
                Feed(name=each.name or each.key, key=each.key, kind=each.kind, extra=each.extra)
                for each in contract.inputs
            ),
            segments=tuple(each.label for each in contract.segments),
            outputs=numbers.get(contract.kind, 0),
            combine=contract.combine,
            frame=contract.frame,
            configs=contract.configs,
            asked=Asked.of(contract),
            engine=contract.engine,
        )

    def message(self) -> dict[str, Any]:
        """Return the terms as JSON values."""
        return {
            "output": self.output,
            "kind": self.kind.value,
            "feeds": [
                {"name": each.name, "key": each.key, "kind": each.kind.value, "extra": dict(each.extra)}
                for each in self.feeds
            ],
            "segments": list(self.segments),
            "outputs": self.outputs,
            "combine": self.combine.value,
            "frame": self.frame.value,
            "configs": list(self.configs),
            "asked": self.asked.message(),
            "engine": asdict(self.engine),
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Return the terms that `message` made these values of."""
        return cls(
            output=str(message["output"]),
            kind=ModelKind(message["kind"]),
            feeds=tuple(
                Feed(
                    name=str(each["name"]),
                    key=str(each["key"]),
                    kind=InputKind(each["kind"]),
                    extra=dict(each["extra"]),
                )
                for each in message["feeds"]
            ),
            segments=tuple(int(each) for each in message["segments"]),
            outputs=int(message["outputs"]),
            combine=Combine(message["combine"]),
            frame=BoxFrame(message["frame"]),
            configs=tuple(map(str, message["configs"])),
            asked=Asked.from_message(message["asked"]),
            engine=_engine(message["engine"]),
        )


def _engine(message: Mapping[str, Any]) -> EngineContract:
    overlap, batch = message["overlap"], message["window_batch"]
    return EngineContract(
        engine=Engine(message["engine"]),
        precision=Precision(message["precision"]),
        channels_last=bool(message["channels_last"]),
        window=WindowSize(message["window"]),
        overlap=None if overlap is None else float(overlap),
        window_batch=None if batch is None else int(batch),
        parity=float(message["parity"]),
    )
