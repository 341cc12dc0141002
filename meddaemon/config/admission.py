"""Admission: a model gets work only when its check is green for exactly what it is now, or somebody forced it.

The check itself is made by `meddaemon models check` (`deploy/check.py`), and kept where only this installation writes:
in the folder `admissions` of the store's directory. What lies beside a contract may have come with it, and proves
nothing; only the package itself vouches for its built-in models. A check is bound to the digest of the model: whatever
changes afterwards, bundle, weights or contract, takes it away.
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meddaemon.config.digest import CHECK_NAME, file_digest, model_files, record_file
from meddaemon.domain.contract import Admission, ModelContract

BESIDE = "beside the engine as shipped"
"""The variant of a case that compares a contract's engine with the bundle as shipped: the parity gate."""
_MAXIMUM_RECORD_BYTES = 2**24
_NAMED_FILES = 5
_AT_LEAST = frozenset({"dice", "overlap"})

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """What we keep of a model as JSON; unknown keys are from a version that we are not."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CaseResult(Record):
    """What one variant of a golden case gave: the worst `value` of its `measure`, and the `limit` that it must keep.

    Dice of a label and overlap of a box are at least their limit; the difference of a score and the distance of a
    landmark at most. `failure` is why there is no value.
    """

    case: str
    variant: str
    measure: Literal["dice", "difference", "overlap", "distance"]
    value: float | None = None
    limit: float
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether the result is what the case wants."""
        if self.failure or self.value is None:
            return False
        return self.value >= self.limit if self.measure in _AT_LEAST else self.value <= self.limit

    @property
    def said(self) -> str:
        """The result in one line."""
        if self.failure or self.value is None:
            return f"case {self.case}, {self.variant}: {self.failure or 'no result'}"
        sense = "at least" if self.measure in _AT_LEAST else "at most"
        return f"case {self.case}, {self.variant}: {self.measure} {self.value:.5f}, {sense} {self.limit:g} is wanted"


class Check(Record):
    """What a check found. `files` has the SHA-256 of every file of the model, so that one that changes is named.

    `engine` is what the contract changes about how the network is carried out, which was compared on `host`.
    """

    format: Literal[1] = 1
    model: str
    digest: Sha256
    files: dict[str, Sha256]
    cases: tuple[CaseResult, ...] = ()
    provenance: dict[str, str] = {}
    engine: str = ""
    host: str = ""
    forced: str = ""
    at: str
    by: str

    @property
    def green(self) -> bool:
        """Whether there are golden cases, and every variant of every one gave what it must."""
        return bool(self.cases) and all(each.ok for each in self.cases)


def admitted(contract: ModelContract) -> ModelContract:
    """Return the contract with its admission, or why it is not admitted."""
    return replace(contract, admission=_admission(contract))


def read_check(contract: ModelContract) -> Check | None:
    """Return the check of a model, None where there is none. Raises ValueError when it cannot be read as one."""
    if (file := contract.record) is None:
        return None
    try:
        if file.stat().st_size > _MAXIMUM_RECORD_BYTES:
            raise ValueError(f"{file} is too large to be a check")
        return Check.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ValueError(f"{file} is not a check that this version made") from error


def file_digests(contract: ModelContract) -> dict[str, str]:
    """Return the SHA-256 of every file of a model, by the name under which it goes into the digest."""
    return {
        name: file_digest(path) for name, path in model_files(contract.bundle, contract.contract_file, contract.weights)
    }


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """Name the files that differ, the first few of them, and how."""
    found = [
        f"{name} {'is new' if name not in before else 'is gone' if name not in now else 'is different'}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    more = f" and {len(found) - _NAMED_FILES} more" if len(found) > _NAMED_FILES else ""
    return ", ".join(found[:_NAMED_FILES]) + more


def _admission(contract: ModelContract) -> Admission:
    remedy = f"run `meddaemon models check {contract.name}`"
    try:
        check = read_check(contract)
    except ValueError as error:
        return Admission(refusal=f"{error}: {remedy}")
    if check is None:
        foreign = record_file(contract.contract_file, CHECK_NAME)
        proves = f" here, and {foreign.name} beside its contract proves nothing" if foreign.exists() else ""
        return Admission(refusal=f"it was never checked{proves}: {remedy}")
    if check.digest != contract.digest or check.model != contract.name:
        what = changes(check.files, file_digests(contract)) or "its name is different"
        return Admission(refusal=f"it changed since it was checked ({what}): {remedy}")
    compared = any(each.variant == BESIDE for each in check.cases) or not contract.engine.changes
    if check.forced or (check.green and compared):
        return Admission(forced=check.forced)
    return Admission(refusal=_why_not(contract, check))


def _why_not(contract: ModelContract, check: Check) -> str:
    failed = [each.said for each in check.cases if not each.ok]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"its check failed ({failed[0]}{more})"
    by_force = f"`meddaemon models check {contract.name} --force REASON` lets it work all the same"
    if contract.engine.changes:
        return (
            f"its engine ({', '.join(contract.engine.changes)}) was compared with the bundle as shipped on no golden"
            f" case: add one, or leave [engine] out of its contract; {by_force}"
        )
    golden = f"`meddaemon models golden {contract.name} CASE KEY=FOLDER`"
    return f"it has no golden case: {golden} makes one of a result that a person has found right; {by_force}"
