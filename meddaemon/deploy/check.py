"""Checking a model: its golden cases, as given and turned, by the very processes that run it on patients.

What is found is recorded in the store's directory, bound to the digest of the model; `config/admission.py` reads it
wherever work is given out.
"""

import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from meddaemon.config.admission import BESIDE, CaseResult, Check, admitted, file_digests
from meddaemon.deploy import golden
from meddaemon.deploy.golden import Case, Grid, Source, Turn
from meddaemon.deploy.places import NotThere, farthest, places, worst_overlap
from meddaemon.deploy.registry import now, operator, require_unchanged, write_record
from meddaemon.domain.contract import EngineContract, InputKind, ModelContract, ModelKind
from meddaemon.domain.errors import BundleRefused, InputRefused, InvalidConfiguration, ModelFailed
from meddaemon.domain.result import Labels, Prediction
from meddaemon.domain.volume import Volume
from meddaemon.inference.loading import Prepared
from meddaemon.inference.runtime import Limits
from meddaemon.inference.warm import WarmModels

AGAIN = "the same once more"
_FAILURE_CHARACTERS = 300
_MEASURES = {ModelKind.SEGMENTATION: "dice", ModelKind.DETECTION: "overlap", ModelKind.LANDMARKS: "distance"}
"""By what a model of that kind is measured; others by the difference of their scores."""


@contextmanager
def processes(limits: Limits | None = None) -> Iterator[WarmModels]:
    """Give the processes in which models are checked; `limits` are those of the worker."""
    with tempfile.TemporaryDirectory(prefix="meddaemon-check-") as scratch, WarmModels(Path(scratch), limits) as models:
        yield models


def check(
    contract: ModelContract,
    models: WarmModels,
    *,
    force: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> ModelContract:
    """Run every golden case of a model, record what was found, and return the contract with its admission.

    `force` is the reason for which somebody lets it in whatever was found; it is recorded, and not where the check is
    green anyway. `say` is told each result. Raises BundleRefused when the bundle is not what was added, OSError.
    """
    require_unchanged(contract.contract_file, contract.bundle)
    results: list[CaseResult] = []
    provenance: dict[str, str] = {}
    # Not in the scratch folder of the processes: they sweep away whatever else lies there.
    with tempfile.TemporaryDirectory(prefix="meddaemon-cases-") as folder:
        for each in golden.find_cases(contract):
            for result in _run(each, contract, models, Path(folder), provenance):
                results.append(result)
                say(result.said)
        if contract.engine.changes:
            for result in _beside(contract, models, Path(folder)):
                results.append(result)
                say(result.said)
    found = Check(
        model=contract.name,
        digest=contract.digest,
        files=file_digests(contract),
        cases=tuple(results),
        provenance=provenance,
        engine=", ".join(contract.engine.changes),
        host=platform.node() if contract.engine.changes else "",
        at=now(),
        by=operator(),
    )
    _record(contract, found if found.green else found.model_copy(update={"forced": force}))
    return admitted(contract)


def force(contract: ModelContract, reason: str) -> ModelContract:
    """Let a model in without running anything, for a reason that is recorded and shown; return its admission."""
    if not reason.strip():
        raise BundleRefused("a model is let in without a green check for a reason only: name it")
    require_unchanged(contract.contract_file, contract.bundle)
    _record(
        contract,
        Check(
            model=contract.name,
            digest=contract.digest,
            files=file_digests(contract),
            forced=reason.strip(),
            at=now(),
            by=operator(),
        ),
    )
    return admitted(contract)


def freeze(
    contract: ModelContract, models: WarmModels, name: str, inputs: Mapping[str, list[Path]], modality: str
) -> Path:
    """Keep what the model makes of these series now as a golden case beside its contract; return its folder.

    A person has looked at that result and vouches for it. Nothing but voxels, places and labels is kept.
    Raises InputRefused, ModelFailed, BundleRefused.
    """
    folder = contract.contract_file.parent / "golden" / name
    if folder.exists():
        raise BundleRefused(f"{folder} is there already")
    with models.prepare(contract, inputs) as prepared:
        sources = _grids(prepared, dict.fromkeys(inputs, modality))
        prediction = models.predict(contract, prepared)
    labels, geometry = _drawn(prediction), prediction.geometry
    golden.write_case(
        folder,
        Case(
            name=name,
            sources=sources,
            labels=labels,
            affine_lps=geometry.affine_lps if geometry else None,
            scores=prediction.scores,
            places=places(prediction, contract) if contract.objects else None,
            is_of_landmarks=contract.kind is ModelKind.LANDMARKS,
        ),
    )
    return folder


def _grids(prepared: Prepared, modalities: Mapping[str, str]) -> tuple[Source, ...]:
    """Return the inputs of a run as grids, decoded as those of patients are. Raises BundleRefused."""
    sources = []
    for key, value in prepared.values().items():
        if not isinstance(value, Volume):
            raise BundleRefused(
                f"input {key} is no volume, and only those are frozen: write a case.toml with `files` (see README)"
            )
        grid = Grid(voxels=np.array(value.voxels, np.float32), affine_lps=value.geometry.affine_lps)
        sources.append(Source(key=key, modality=modalities[key], grid=grid))
    return tuple(sources)


def _record(contract: ModelContract, found: Check) -> None:
    if contract.record is None:
        raise ValueError(f"nobody said where the check of {contract.name} is kept")
    contract.record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_record(contract.record, found)


def _run(
    folder: Path, contract: ModelContract, models: WarmModels, scratch: Path, provenance: dict[str, str]
) -> Iterator[CaseResult]:
    """Yield what each variant of one case gives; a case that cannot be read has failed."""
    try:
        case = golden.read_case(folder)
    except (BundleRefused, InvalidConfiguration) as error:
        yield CaseResult(case=folder.name, variant="read", measure="dice", limit=1.0, failure=_bounded(error))
        return
    names = [each.name or each.key for each in contract.inputs]
    if sorted(names) != sorted(source.key for source in case.sources):
        failure = f"the case has other inputs than the model: {', '.join(names)}"
        yield CaseResult(case=folder.name, variant="read", measure="dice", limit=1.0, failure=failure)
        return
    if case.measure != (measure := _MEASURES.get(contract.kind, "difference")):
        failure = f"the case is measured by its {case.measure}, a model of kind {contract.kind.value} by its {measure}"
        yield CaseResult(case=folder.name, variant="read", measure=case.measure, limit=case.limit, failure=failure)
        return
    volumes = all(each.kind is InputKind.VOLUME for each in contract.inputs)
    turns: tuple[Turn, ...] = (golden.AS_GIVEN, golden.AS_GIVEN, *(golden.TURNS if volumes else ()))
    first: Case | None = None
    for index, turn in enumerate(turns):
        again = index == 1
        wanted = first if again and first is not None else case
        result = CaseResult(
            case=case.name,
            variant=AGAIN if again else turn.name,
            measure=case.measure,
            limit=case.limit,
        )
        with tempfile.TemporaryDirectory(prefix="case-", dir=scratch) as place:
            try:
                if turn is not golden.AS_GIVEN and any(source.grid is None for source in case.sources):
                    case = _as_grids(case, names, contract, models)
                files = golden.files_of(case, turn, Path(place))
                prediction = models.predict(contract, {name: files[name] for name in names})
                value = near(prediction, wanted, contract)
            except (BundleRefused, InputRefused, NotThere) as error:
                yield result.model_copy(update={"failure": _bounded(error)})
                continue
            except ModelFailed as error:
                # It takes up to its time limit, each time: one failure is enough to know.
                yield result.model_copy(update={"failure": _bounded(error)})
                return
        provenance |= prediction.provenance
        if index == 0:
            first = with_result(case, prediction, contract)
        yield result.model_copy(update={"value": value})


def _beside(contract: ModelContract, models: WarmModels, scratch: Path) -> Iterator[CaseResult]:
    """Yield how near each case comes to the bundle as shipped, in single precision: the parity gate of its engine."""
    names = [each.slot for each in contract.inputs]
    with models.apart(replace(contract, engine=EngineContract())) as shipped:
        for folder in golden.find_cases(contract):
            result = CaseResult(case=folder.name, variant=BESIDE, measure="dice", limit=contract.engine.parity)
            with tempfile.TemporaryDirectory(prefix="case-", dir=scratch) as place:
                try:
                    case = golden.read_case(folder)
                    limit = _parity(case, contract.engine)
                    result = result.model_copy(update={"measure": case.measure, "limit": limit})
                    files = golden.files_of(case, golden.AS_GIVEN, Path(place))
                    inputs = {name: files[name] for name in names if name in files}
                    if len(inputs) < len(names):
                        raise NotThere("the case has other inputs than the model")
                    wanted = shipped.predict(inputs, time_limit=contract.time_limit_seconds)
                    value = near(models.predict(contract, inputs), with_result(case, wanted, contract), contract)
                except (BundleRefused, InvalidConfiguration, InputRefused, ModelFailed, NotThere) as error:
                    yield result.model_copy(update={"failure": _bounded(error)})
                    continue
            yield result.model_copy(update={"value": value})


def _parity(case: Case, engine: EngineContract) -> float:
    """Return how near to the bundle as shipped an engine must come in a case, by its measure."""
    if case.measure == "distance":
        return case.limit
    return round(1 - engine.parity, 9) if case.measure == "difference" else engine.parity


def _as_grids(case: Case, names: Sequence[str], contract: ModelContract, models: WarmModels) -> Case:
    """Return a case whose files are read, so that they can be turned.

    Raises InputRefused, ModelFailed, BundleRefused.
    """
    files = {source.key: source.files for source in case.sources}
    with models.prepare(contract, {name: files[name] for name in names}) as prepared:
        return replace(case, sources=_grids(prepared, {source.key: source.modality for source in case.sources}))


def near(prediction: Prediction, wanted: Case, contract: ModelContract) -> float:
    """Return how near a prediction is to what is wanted, in patient space. Raises NotThere."""
    if prediction.doubts:
        raise NotThere("; ".join(prediction.doubts))
    if wanted.places is not None:
        found_places = places(prediction, contract)
        if wanted.is_of_landmarks:
            return farthest(found_places, wanted.places, difference=wanted.difference)
        return worst_overlap(found_places, wanted.places, prediction.geometry, difference=wanted.difference)
    if wanted.labels is None:
        if len(prediction.scores) != len(wanted.scores) or not np.isfinite(prediction.scores).all():
            raise NotThere(f"scores {list(prediction.scores)[:9]} where the case has {list(wanted.scores)[:9]}")
        return max(abs(one - other) for one, other in zip(prediction.scores, wanted.scores, strict=True))
    drawn, geometry = _drawn(prediction), prediction.geometry
    if drawn is None:
        raise NotThere("nothing was drawn")
    found, expected = golden.layers(drawn), golden.layers(wanted.labels)
    if len(found) != len(expected):
        raise NotThere(f"{len(found)} maps or masks were drawn, the case has {len(expected)}")
    if geometry is None and wanted.affine_lps is None and drawn.shape == wanted.labels.shape:
        return min(golden.worst_dice(one, other) for one, other in zip(found, expected, strict=True))
    if geometry is None or wanted.affine_lps is None:
        raise NotThere("the result and the case do not lie on the same pictures, or in the same volume")
    return min(
        golden.worst_dice(golden.onto(one, geometry.affine_lps, other.shape, wanted.affine_lps), other)
        for one, other in zip(found, expected, strict=True)
    )


def _drawn(prediction: Prediction) -> Labels | None:
    """Return labels, or masks as labels [segment, plane, row, column]."""
    return prediction.labels if prediction.masks is None else prediction.masks.astype(np.uint8)


def with_result(case: Case, prediction: Prediction, contract: ModelContract) -> Case:
    """Return the case as if this prediction had been what it expects: what a second run is compared with."""
    if case.places is not None:
        return replace(case, places=places(prediction, contract))
    if case.labels is None:
        return replace(case, scores=prediction.scores)
    geometry = prediction.geometry
    return replace(case, labels=_drawn(prediction), affine_lps=geometry.affine_lps if geometry else None)


def _bounded(error: Exception) -> str:
    return " ".join(str(error).split())[:_FAILURE_CHARACTERS]
