"""Which settings of `[engine]` make a model faster on this machine, and how near they stay to the bundle as shipped.

Each is timed in turns with the bundle as shipped, on its golden case and after a run that does not count; nothing is
changed. What is near enough is for the contract to say, and for `models check` to find out.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from meddaemon.deploy import golden
from meddaemon.deploy.check import near, with_result
from meddaemon.deploy.places import NotThere
from meddaemon.domain.contract import Engine, EngineContract, ModelContract, Precision, WindowSize
from meddaemon.domain.errors import BundleRefused, InputRefused, ModelFailed
from meddaemon.domain.result import Prediction
from meddaemon.inference.runtime import ModelProcess
from meddaemon.inference.warm import WarmModels

_BF16 = EngineContract(precision=Precision.BF16, channels_last=True)
SETTINGS = (
    EngineContract(channels_last=True),
    EngineContract(window_batch=1),
    EngineContract(window=WindowSize.FITTED),
    _BF16,
    replace(_BF16, window_batch=1, window=WindowSize.FITTED),
    EngineContract(precision=Precision.AMP, channels_last=True, window=WindowSize.FITTED),
    EngineContract(engine=Engine.OPENVINO),
    EngineContract(engine=Engine.OPENVINO, precision=Precision.BF16),
    EngineContract(engine=Engine.OPENVINO, precision=Precision.BF16, window_batch=1, window=WindowSize.FITTED),
)
"""What is tried. Less overlap is not: it is another answer, however near it comes on one case."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One setting: seconds from volume to prediction, how many times faster that is, and the least parity of a case.

    `lines` is the table of a contract; `why` says what did not run.
    """

    settings: str
    seconds: float | None = None
    faster: float | None = None
    parity: float | None = None
    lines: str = ""
    why: str = ""


def tune(
    contract: ModelContract,
    models: WarmModels,
    *,
    rounds: int = 3,
    settings: Sequence[EngineContract] = SETTINGS,
    say: Callable[[Timed], None] = lambda _: None,
) -> list[Timed]:
    """Return what each of the `settings` that this machine has is worth on the first golden case.

    Raises BundleRefused where there is no case.
    """
    folders = golden.find_cases(contract)
    if not folders:
        raise BundleRefused(f"{contract.name} has no golden case: nothing to time or to compare with")
    case = golden.read_case(folders[0])
    found = []
    with tempfile.TemporaryDirectory(prefix="meddaemon-tune-") as folder:
        files = golden.files_of(case, golden.AS_GIVEN, Path(folder))
        inputs = {each.slot: files[each.slot] for each in contract.inputs if each.slot in files}
        for engine in settings:
            if engine.engine is Engine.OPENVINO and find_spec("openvino") is None:
                continue
            timed = _timed(contract, engine, models, inputs, case, rounds)
            say(timed)
            found.append(timed)
    return found


def best(found: list[Timed], parity: float) -> Timed | None:
    """Return the fastest setting that is near enough and worth having; None where there is none."""
    enough = [each for each in found if (each.parity or 0) >= parity and (each.faster or 0) > 1]
    return max(enough, key=lambda each: each.faster or 0, default=None)


def _timed(
    contract: ModelContract,
    engine: EngineContract,
    models: WarmModels,
    inputs: Mapping[str, list[Path]],
    case: golden.Case,
    rounds: int,
) -> Timed:
    """Return what one setting is worth: both models stay warm, and take turns."""
    said = ", ".join(engine.changes)
    shipped = replace(contract, engine=EngineContract())
    seconds: list[float] = []
    ratios: list[float] = []
    try:
        with models.apart(shipped) as one, models.apart(replace(contract, engine=engine)) as other:
            wanted = with_result(case, _run(one, inputs, contract)[0], contract)
            prediction, _ = _run(other, inputs, contract)
            value = near(prediction, wanted, contract)
            for _ in range(rounds):
                _, before = _run(one, inputs, contract)
                _, after = _run(other, inputs, contract)
                seconds.append(after)
                ratios.append(before / after)
    except (BundleRefused, InputRefused, ModelFailed, NotThere) as error:
        return Timed(settings=said, why=" ".join(str(error).split())[:200])
    return Timed(
        settings=said,
        seconds=median(seconds),
        faster=median(ratios),
        parity=value if case.measure in {"dice", "overlap"} else 1 - value,
        lines=_lines(engine),
    )


def _run(process: ModelProcess, inputs: Mapping[str, list[Path]], contract: ModelContract) -> tuple[Prediction, float]:
    started = time.perf_counter()
    prediction = process.predict(inputs, time_limit=contract.time_limit_seconds)
    spent = prediction.seconds
    parts = [spent[part] for part in ("preprocess", "infer", "postprocess") if part in spent]
    return prediction, sum(parts) if parts else time.perf_counter() - started


def _lines(engine: EngineContract) -> str:
    """Return the table of a contract that says so."""
    shipped = EngineContract()
    wanted = {
        name: getattr(engine, name) for name in ("engine", "precision", "channels_last", "window", "window_batch")
    }
    kept = {name: value for name, value in wanted.items() if value != getattr(shipped, name)}
    texts = [
        f"{name} = {str(value).lower() if isinstance(value, bool | int) else _quoted(value)}"
        for name, value in kept.items()
    ]
    return "\n".join(["[engine]", *texts])


def _quoted(value: object) -> str:
    return f'"{value}"'
