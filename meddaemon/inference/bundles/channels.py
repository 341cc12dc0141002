"""Many classes in pieces, bit for bit what torch does to all of them at once. Only for the model child.

On a CPU, torch computes `softmax` and `sigmoid` in blocks of its vector registers and what is left over at the end of
each thread's share one by one, with other roundings. So a piece gives the bits of the whole only where each of its
numbers goes the way it would go there: pieces start and end at blocks, and what is left over is computed as such.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

PIECE_BYTES = 2**22
"""Classes are gone through in pieces of this size: it stays in the caches of a processor."""
_BLOCK = 256
"""Numbers; a multiple of every block that torch computes at once (at most two registers of 16 floats)."""
_GPU_COLUMNS = 1024
"""From so many columns on, each is one thread's; with few, several threads share the classes of one."""


@dataclass(frozen=True)
class Activation:
    """What makes probabilities of logits: over the first axis, or number by number.

    `alone` says that one number never needs another, `grain` how many numbers torch gives a thread at least.
    """

    compute: Callable[..., torch.Tensor]
    alone: bool
    grain: int

    def whole(self, values: torch.Tensor, *, owned: bool) -> torch.Tensor:
        """Return the probabilities of all classes; in the place of the logits where those are ours to overwrite."""
        if owned and values.is_contiguous() and values.dtype == torch.float32:
            return self.compute(values, out=values)
        return self.compute(values.float())

    def part(self, values: torch.Tensor, start: int, total: int) -> torch.Tensor:
        """Return what this part of a whole becomes there: (k, n) that stands from column `start` of `total` on."""
        result = torch.empty_like(values)
        if values.device.type != "cpu":
            self._compute(values, result, 0, 0, max(values.shape[1], min(total, _GPU_COLUMNS)))
            return result
        threads = torch.get_num_threads()
        stop = start + values.shape[1]
        for first, last in _shares(total, threads, self.grain):
            begin, end = max(start, first), min(stop, last)
            over = last - (last - first) % _BLOCK
            if begin < (full := min(end, over)):
                at = begin - (begin - first) % _BLOCK
                # A multiple for each thread, since torch divides this piece among them, too.
                width = -((at - full) // (_BLOCK * threads)) * _BLOCK * threads
                self._compute(values[:, begin - start : full - start], result, begin - start, begin - at, width)
            if (begin := max(begin, over)) < end:
                with _threads(1):
                    piece = values[:, begin - start : end - start]
                    self._compute(piece, result, begin - start, begin - over, last - over)
        return result

    def _compute(self, piece: torch.Tensor, result: torch.Tensor, to: int, at: int, width: int) -> None:
        """Compute `piece` as columns from `at` on of `width`, and put it into `result` from the column `to` on."""
        size = piece.shape[1]
        # One column alone would be taken for a vector of classes.
        padded = piece.new_zeros((piece.shape[0], max(2, width)))
        padded[:, at : at + size] = piece
        result[:, to : to + size] = self.compute(padded)[:, at : at + size]


def _softmax(values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    return torch.softmax(values, dim=0) if out is None else torch.softmax(values, dim=0, out=out)


SOFTMAX = Activation(_softmax, alone=False, grain=1)
SIGMOID = Activation(torch.sigmoid, alone=True, grain=2**15)


def label_type(classes: int) -> torch.dtype:
    """Return the smallest type of number that tells so many classes apart."""
    return torch.uint8 if classes <= 2**8 else torch.int32


def highest(values: torch.Tensor) -> torch.Tensor:
    """Return which class is the highest of each voxel, the first of several: `argmax` of (class, ...) over the classes.

    In the smallest number type that holds the classes.
    """
    best = Highest(values.shape[0])
    best.add(values)
    return best.labels


class Highest:
    """Which class is the highest of each voxel, of classes that come one after the other."""

    def __init__(self, classes: int) -> None:
        """Expect so many classes."""
        self._dtype = label_type(classes)
        self._classes = classes
        self._seen = 0
        self._best: torch.Tensor | None = None
        self._labels: torch.Tensor | None = None

    @property
    def labels(self) -> torch.Tensor:
        """The class of each voxel. Raises `ValueError` before all classes were seen."""
        if self._labels is None or self._seen < self._classes:
            raise ValueError(f"{self._seen} of {self._classes} classes were seen")
        return self._labels

    def add(self, values: torch.Tensor) -> None:
        """Take the next classes (class, ...)."""
        last = self._seen + values.shape[0] == self._classes
        if self._labels is None:
            self._labels = torch.zeros(values.shape[1:], dtype=self._dtype, device=values.device)
        if self._best is None and not last:
            self._best = torch.empty(values.shape[1:], dtype=values.dtype, device=values.device)
        for at in slabs(values):
            best, label = values[:, at].max(dim=0)
            label += self._seen
            if self._seen and self._best is not None:
                known = self._best[at]
                # NaN is the highest of all, as for argmax.
                better = (best > known) | (best.isnan() & ~known.isnan())
                best = torch.where(better, best, known)
                label = torch.where(better, label, self._labels[at].long())
            if self._best is not None:
                self._best[at] = best
            self._labels[at] = label.to(self._dtype)
        self._seen += values.shape[0]
        if last:
            self._best = None


def slabs(values: torch.Tensor) -> Iterator[slice]:
    """Yield slices of the second axis of (class, ...) that hold so much at a time as may be held."""
    if not values.shape[1]:
        return
    each = max(1, values[:, :1].numel() * values.element_size())
    step = max(1, PIECE_BYTES // each)
    yield from (slice(start, start + step) for start in range(0, values.shape[1], step))


def _shares(total: int, threads: int, grain: int) -> Iterator[tuple[int, int]]:
    """Yield how torch divides `total` numbers among its threads, as (first, beyond the last)."""
    count = min(threads, -(-total // grain)) if total > grain else 1
    size = -(-total // max(1, count))
    yield from ((first, min(total, first + size)) for first in range(0, total, size))


class _threads:  # noqa: N801 - a context manager that reads as a function
    """So many threads of torch inside."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._count:
            torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        if self._before != self._count:
            torch.set_num_threads(self._before)
