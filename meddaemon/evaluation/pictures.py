"""Which image of a result is which image of a reference: by the SOP Instance UID and the frame that they name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from meddaemon.db.outcomes import Outcome
from meddaemon.domain.errors import InputRefused, ReferenceRefused
from meddaemon.evaluation.masks import DrawnOnPictures, Image
from meddaemon.inference.pictures import read_header

_LISTED = 5


def images_of(outcome: Outcome) -> tuple[Image, ...]:
    """Return the images on each of which a result tells the area of its segments; none where it draws in a volume."""
    return tuple(
        dict.fromkeys(
            (each.sop_instance_uid, each.frame_number)
            for each in outcome.findings
            if each.segment and each.sop_instance_uid and each.low is None
        )
    )


def shown(image: Image) -> str:
    """Return what an image is called in reports."""
    return f"{image[0]}#{image[1]}" if image[1] else image[0]


def listed(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def places(images: Sequence[Image], drawn: DrawnOnPictures) -> Mapping[Image, Image | None]:
    """Return, of the images that an object speaks of, which of its own each is; None where it draws nothing on it.

    It says that nothing is on an instance that it names without any frame of it. Where it has some, nobody can tell
    whether there is nothing on the others or nobody looked: those are not in the answer. Raises ReferenceRefused where
    it does not say on which frame of an instance it draws.
    """
    asked, named = _frames(images), _frames(drawn.images)
    found: dict[Image, Image | None] = {}
    for uid, frames in asked.items():
        if 0 in named.get(uid, ()):
            if (frames, named[uid]) != ({1}, {0}):
                raise ReferenceRefused(f"it draws on {uid}, and does not say on which of its frames")
            found[uid, 1] = (uid, 0)
        elif uid in named:
            found |= {(uid, frame): (uid, frame) for frame in sorted(frames & named[uid])}
        elif uid in drawn.instances:
            found |= {(uid, frame): None for frame in sorted(frames)}
    return found


def _frames(images: Sequence[Image]) -> dict[str, set[int]]:
    of_instance: dict[str, set[int]] = {}
    for uid, frame in images:
        of_instance.setdefault(uid, set()).add(frame)
    return of_instance


def unknown(images: Sequence[Image], drawn: DrawnOnPictures) -> list[str]:
    """Return what an object names that is not among the images."""
    asked = _frames(images)
    frames = [(uid, frame) for uid, frame in drawn.images if frame and uid in asked and frame not in asked[uid]]
    return [*sorted(drawn.instances - asked.keys()), *map(shown, frames)]


def spacing_of(path: Path | None) -> tuple[float, float] | None:
    """Return how far (rows, columns) of an image lie apart in the patient, in mm; None where nobody knows."""
    if path is None or not path.is_file():
        return None
    try:
        spacing = read_header(path).spacing
    except InputRefused:
        return None
    return None if spacing is None or spacing.of_detector else spacing.mm
