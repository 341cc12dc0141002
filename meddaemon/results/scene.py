"""What there is to show of a result, image by image: segments, boxes and landmarks alike."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.picture import Pictures
from meddaemon.domain.result import Analysis, Drawing, Finding
from meddaemon.domain.volume import Volume
from meddaemon.results.outlines import outlines

_COLOURS = ((255, 212, 0), (0, 214, 255), (255, 94, 196), (126, 255, 94), (255, 148, 48), (170, 148, 255))
"""Colours of what has none of its own, by its place among the findings."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One thing to show: a segment (its number), or the box or the point of a finding, in (image, row, column).

    `low` and `high` count edges of voxels (see `domain.result.Box`), for a point they are the same. `key` is the
    image that shows it best: of a segment the one with its largest area, of others that of its centre. `size` is in
    voxels.
    """

    name: str
    colour: tuple[int, int, int]
    key: int
    size: float
    segment: int | None = None
    low: tuple[float, float, float] = (0.0, 0.0, 0.0)
    high: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def is_point(self) -> bool:
        """Whether it is a landmark."""
        return self.segment is None and self.low == self.high


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The images of a result, (SOP Instance UID, frame from 1) each, and what there is to show on them.

    `drawing` holds the segments, its planes being the images; `areas` [image, segment - 1] are how many voxels each
    has on each. `marks` are in the order of the result: segments, then findings.
    """

    images: tuple[tuple[str, int], ...]
    drawing: Drawing | None
    areas: NDArray[np.int64]
    marks: tuple[Mark, ...]

    @property
    def largest(self) -> Mark | None:
        """What is looked at first."""
        return max(self.marks, key=lambda mark: mark.size, default=None)

    def images_of(self, mark: Mark) -> list[int]:
        """Return the images that show a mark, in their order."""
        if mark.segment is not None:
            return [int(image) for image in np.flatnonzero(self.areas[:, mark.segment - 1])]
        if mark.is_point:
            return [mark.key]
        # A plane is shown where its centre lies within.
        first, last = max(int(np.ceil(mark.low[0])), 0), min(int(np.floor(mark.high[0])), len(self.images) - 1)
        return list(range(first, last + 1)) or [mark.key]

    def shows(self, mark: Mark, image: int) -> bool:
        """Return whether an image shows a mark."""
        if mark.segment is not None:
            return bool(self.areas[image, mark.segment - 1])
        return image in self.images_of(mark)

    def polygons(self, mark: Mark, image: int) -> list[NDArray[np.float64]]:
        """Return the outlines of a mark on one image, (corners, 2) of (row, column) as `outlines` counts them.

        A point is one corner.
        """
        if mark.segment is not None and self.drawing is not None:
            return [each.astype(np.float64) for each in outlines(self.drawing.mask(mark.segment, image))]
        (top, left), (bottom, right) = np.add(mark.low[1:], 0.5), np.add(mark.high[1:], 0.5)
        if mark.is_point:
            return [np.array([[top, left]])]
        return [np.array([[top, left], [top, right], [bottom, right], [bottom, left]])]

    def inside(self, mark: Mark, at: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points lie in a mark, `at` being (3, ...) of (image, row, column) in voxel centres."""
        if mark.segment is None or self.drawing is None:
            reach = (3,) + (1,) * (at.ndim - 1)
            low, high = np.reshape(mark.low, reach), np.reshape(mark.high, reach)
            return np.asarray((at >= low).all(axis=0) & (at <= high).all(axis=0))
        index = np.rint(at).astype(np.int64)
        limits = np.reshape(self.drawing.shape, (3,) + (1,) * (at.ndim - 1))
        within = np.asarray(((index >= 0) & (index < limits)).all(axis=0))
        image, row, column = np.clip(index, 0, limits - 1)
        if self.drawing.masks is not None:
            return np.asarray(self.drawing.masks[mark.segment - 1, image, row, column] & within)
        labels = self.drawing.labels
        return np.asarray((labels[image, row, column] == mark.segment) & within) if labels is not None else within


def scene_of(analysis: Analysis, shown: Volume | Pictures | None) -> Scene:
    """Return what there is to show."""
    images = _images(analysis, shown)
    there = analysis.labels is not None or analysis.masks is not None
    drawing = Drawing(labels=analysis.labels, masks=analysis.masks) if there else None
    if drawing is not None and drawing.shape[0] != len(images):
        drawing = None
    areas = _areas(drawing)
    segments = () if drawing is None else _segments(analysis, areas)
    return Scene(images=images, drawing=drawing, areas=areas, marks=(*segments, *_objects(analysis, images)))


def _images(analysis: Analysis, shown: Volume | Pictures | None) -> tuple[tuple[str, int], ...]:
    if analysis.images:
        return analysis.images
    if isinstance(shown, Pictures):
        return shown.sources
    named = (location for finding in analysis.findings if (location := analysis.location(finding)) is not None)
    return tuple(dict.fromkeys((each.sop_instance_uid, each.frame_number) for each in named if each.sop_instance_uid))


def _areas(drawing: Drawing | None) -> NDArray[np.int64]:
    if drawing is None:
        return np.zeros((0, 0), dtype=np.int64)
    counts = [drawing.counts(plane) for plane in range(drawing.shape[0])]
    table = np.zeros((len(counts), max((len(each) for each in counts), default=1)), dtype=np.int64)
    for plane, each in enumerate(counts):
        table[plane, : len(each)] = each
    return table[:, 1:]


def _segments(analysis: Analysis, areas: NDArray[np.int64]) -> Iterator[Mark]:
    for segment in analysis.segments:
        area = areas[:, segment.number - 1] if segment.number <= areas.shape[1] else np.zeros(1, dtype=np.int64)
        if area.any():
            yield Mark(
                name=segment.label,
                colour=segment.colour,
                key=int(area.argmax()),
                size=float(area.sum()),
                segment=segment.number,
            )


def _objects(analysis: Analysis, images: tuple[tuple[str, int], ...]) -> Iterator[Mark]:
    """Yield what boxes and landmarks show; one on an image that is not there shows nothing."""
    codes = list(dict.fromkeys(finding.code for finding in analysis.findings))
    for finding in analysis.findings:
        place = _place(finding, images)
        if place is None:
            continue
        low, high = place
        yield Mark(
            name=finding.code.meaning,
            colour=_COLOURS[codes.index(finding.code) % len(_COLOURS)],
            key=min(max(round((low[0] + high[0]) / 2), 0), len(images) - 1),
            size=float(np.prod(np.subtract(high, low))),
            low=low,
            high=high,
        )


_Place = tuple[tuple[float, float, float], tuple[float, float, float]]


def _place(finding: Finding, images: tuple[tuple[str, int], ...]) -> _Place | None:
    if finding.box is not None:
        low, high, source = finding.box.low, finding.box.high, finding.box.source
    elif finding.landmark is not None:
        low = high = finding.landmark.position
        source = finding.landmark.source
    else:
        return None
    if source is None:
        return None if not images or len(low) != 3 else ((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    if source not in images:
        return None
    image = images.index(source)
    flat = 0.0 if finding.box is None else 0.5
    return (image - flat, low[0], low[1]), (image + flat, high[0], high[1])
