"""A bundle, loaded once and run again and again. Only for the model child."""

import importlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose, apply_transform
from monai.utils import CommonKeys, set_determinism

from meddaemon.domain.contract import BoxFrame, InputKind, ModelKind
from meddaemon.domain.errors import InputRefused, ModelFailed
from meddaemon.domain.picture import Pictures, Signal
from meddaemon.domain.result import Box, Landmark, Prediction
from meddaemon.domain.volume import Volume
from meddaemon.inference.bundles import engine, faster, images, outputs
from meddaemon.inference.bundles.edges import BATCHES, Edges, replace_edges
from meddaemon.inference.bundles.images import Grid, Source, TakeImage, TakeImaged
from meddaemon.inference.bundles.kinds import obstacles
from meddaemon.inference.bundles.reading import read_bundle
from meddaemon.inference.bundles.shims import apply_shims
from meddaemon.inference.bundles.terms import Feed, Terms
from meddaemon.inference.bundles.weights import (
    CONVENTION,
    Checkpoint,
    Witness,
    fill_by_convention,
    is_torchscript,
    refuse_unfilled,
)
from meddaemon.inference.regrid import Straightened, is_straight

# Of `initialize`, what runs, sets seeds or is there for savers is ours.
_OURS = ("@evaluator", "@trainer", "set_determinism", "register_writer")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One run of the network: the preprocessed data, where it lies in the source, and which part of that it is."""

    data: Any
    grid: Grid
    source: tuple[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Inputs that are preprocessed, ready for the network.

    `straightened` is how the first input, a stack that is no box of voxels, was made one: what is found returns by it.
    """

    first: Source
    straightened: Straightened | None
    items: tuple[Item, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One loaded bundle, warm. `evaluation` is there when the bundle's own evaluator is run."""

    preprocessing: Any
    inferer: Any
    network: Any
    postprocessing: Any
    terms: Terms
    device: torch.device
    frame: BoxFrame = BoxFrame.RAS
    box_mode: str = ""
    evaluation: Any = None
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """Key of the prediction in the bundle's data dictionary."""
        return self.terms.output

    def predict(self, inputs: Mapping[str, Source]) -> Prediction:
        """Run the bundle on its inputs by name; what it finds lies on the grid of the first.

        Raises `InputRefused` when the inputs do not belong together, and `ModelFailed` when the result is not what
        the contract says, or lies nowhere. Whatever the bundle's own code raises passes through.
        """
        return self.infer(self.prepare(inputs))

    def prepare(self, inputs: Mapping[str, Source]) -> Prepared:
        """Preprocess the inputs; may run while another result is inferred, in a thread of its own."""
        seconds: dict[str, float] = {}
        feeds = self.terms.feeds or tuple(Feed(name=name, key=name) for name in inputs)
        with torch.no_grad(), _timed("preprocess", seconds):
            straightened = {
                feed.name: Straightened(volume.geometry)
                for feed in feeds
                if feed.kind is InputKind.VOLUME
                and isinstance(volume := inputs[feed.name], Volume)
                and not is_straight(volume.geometry)
            }
            straight = {name: _straight(source, straightened.get(name)) for name, source in inputs.items()}
            items = tuple(
                replace(item, data=apply_transform(self.preprocessing, item.data))
                for item in self._items(feeds, straight)
            )
        first = feeds[0].name
        return Prepared(first=inputs[first], straightened=straightened.get(first), items=items, seconds=seconds)

    def infer(self, prepared: Prepared) -> Prediction:
        """Run the network on prepared inputs, and return what it finds on the grid of the first input."""
        seconds = {"infer": 0.0, "postprocess": 0.0}
        set_determinism(seed=0)
        with torch.no_grad():
            found = [(item, self._run(item, seconds)) for item in prepared.items]
            started = time.perf_counter()
            prediction = self._prediction(prepared.first, found)
            if prepared.straightened is not None:
                prediction = _returned(prediction, prepared.straightened)
        seconds["postprocess"] += time.perf_counter() - started
        return replace(prediction, seconds={**prepared.seconds, **seconds})

    def _items(self, feeds: Sequence[Feed], inputs: Mapping[str, Source]) -> Iterator[Item]:
        """Yield the data of each run: one for volumes and waveforms, one for each slice or picture of the first."""
        taken = _keys_of(self.preprocessing)
        wanted = {feed.key for feed in feeds}
        if taken is not None and not wanted <= taken:
            missing = ", ".join(sorted(wanted - taken))
            raise ModelFailed(f"no loader of the bundle takes {missing}; its loaders take {', '.join(sorted(taken))}")
        first, kind = inputs[feeds[0].name], feeds[0].kind
        count = 1
        if kind is InputKind.SLICES and isinstance(first, Volume):
            count = first.geometry.shape[0]
        elif kind is InputKind.PICTURES and isinstance(first, Pictures):
            count = len(first.sources)
        for index in range(count):
            data: dict[str, Any] = {}
            for key in dict.fromkeys(feed.key for feed in feeds):
                data[key] = _image([feed for feed in feeds if feed.key == key], inputs, index)
            image = data[feeds[0].key]
            for feed in feeds:
                data.update({name: value for name, value in feed.extra.items() if name not in data})
            yield Item(
                data=image if taken is None else data,
                grid=images.grid_of_source(image),
                source=first.sources[index] if isinstance(first, Pictures) else None,
            )

    def _run(self, item: Item, seconds: dict[str, float]) -> Mapping[Any, Any]:
        """Return the data of one item with the prediction of the network in it, postprocessed."""
        if self.evaluation is not None:
            with _timed("infer", seconds):
                result: dict[Any, Any] = self.evaluation.run(item.data)
                result.setdefault(CommonKeys.IMAGE, _image_of(item.data, self.terms))
            return result
        image = _image_of(item.data, self.terms)
        with _timed("infer", seconds):
            raw = self.inferer(image.unsqueeze(0).to(self.device), self.network)
        with _timed("postprocess", seconds):
            data = dict(item.data) if isinstance(item.data, Mapping) else {CommonKeys.IMAGE: image}
            data[CommonKeys.PRED] = _unbatched(raw, image)
            after = apply_transform(self.postprocessing, data)
        return after if isinstance(after, Mapping) else {self.output: after}

    def _prediction(self, first: Source, found: Sequence[tuple[Item, Mapping[Any, Any]]]) -> Prediction:
        result = Prediction(
            series_instance_uid=first.series_instance_uid,
            geometry=first.geometry if isinstance(first, Volume) else None,
            provenance=dict(self.provenance),
        )
        for _, data in found:
            if self.output not in data:
                raise ModelFailed(f"the bundle returns no {self.output!r} but {', '.join(sorted(map(str, data)))}")
        match self.terms.kind:
            case ModelKind.SEGMENTATION:
                each = [self._drawn(item, data) for item, data in found]
                return _segmented(result, each, self.terms.segments, flat=len(found[0][0].grid.shape) == 2)
            case ModelKind.CLASSIFICATION | ModelKind.REGRESSION:
                numbers_of = [outputs.scores(data[self.output], self.terms.outputs) for _, data in found]
                numbers = tuple(map(float, np.mean(numbers_of, axis=0)))
                if len(numbers_of) > 1:
                    result.provenance["scores"] = f"mean of {len(numbers_of)} images"
                return replace(result, scores=numbers, doubts=outputs.score_doubts(numbers))
            case ModelKind.DETECTION:
                boxes = [
                    _in_plane(box, index, first)
                    for index, (item, data) in enumerate(found)
                    for box in self._boxes(item, data)
                ]
                return replace(result, boxes=tuple(boxes))
            case ModelKind.LANDMARKS:
                points = [
                    _in_plane(point, index, first)
                    for index, (item, data) in enumerate(found)
                    for point in self._landmarks(item, data, first)
                ]
                return replace(result, landmarks=tuple(points))

    def _drawn(self, item: Item, data: Mapping[Any, Any]) -> outputs.Drawn:
        image = _image_of(item.data, self.terms)
        seen = images.grid_of(image) if isinstance(image, MetaTensor) else None
        return outputs.drawn(data[self.output], item.grid, self.terms.segments, seen=seen)

    def _boxes(self, item: Item, data: Mapping[Any, Any]) -> tuple[Box, ...]:
        value = data[self.output]
        frame = self._frame(item)
        if isinstance(value, Mapping) and self.evaluation is not None and self.postprocessing is not None:
            # Detection bundles postprocess what they save, not what their evaluator returns.
            value = apply_transform(self.postprocessing, {**value, CommonKeys.IMAGE: data[CommonKeys.IMAGE]})
        found = value if isinstance(value, Mapping) else data
        kept = {key: each for key, each in found.items() if key != CommonKeys.IMAGE}
        return outputs.boxes(kept, frame, mode=self.box_mode, source=item.source)

    def _landmarks(self, item: Item, data: Mapping[Any, Any], first: Source) -> tuple[Landmark, ...]:
        cine = isinstance(first, Pictures) and self.terms.feeds and self.terms.feeds[0].kind is InputKind.CINE
        sources = first.sources if cine and isinstance(first, Pictures) else (item.source,)
        return outputs.landmarks(data[self.output], self._frame(item), sources)

    def _frame(self, item: Item) -> outputs.Frame:
        image = _image_of(item.data, self.terms)
        dimensions = len(item.grid.affine) - 1
        return outputs.Frame(frame=self.frame, image=images.affine_of(image, dimensions), source=item.grid.affine)


def load(
    bundle: Path,
    *,
    output: str = "pred",
    weights: Sequence[Path] = (),
    scratch: Path,
    device: str = "",
    terms: Terms | None = None,
) -> Session:
    """Load the bundle in the folder `bundle` and return a session that runs it.

    `terms` are those of its contract; without them, a segmentation comes out under the key `output`. `weights` lie
    outside the bundle and replace its own. `scratch` is where anything that the bundle still writes goes, `device` a
    torch device (default: the first GPU, else the CPU). Raises `ModelFailed` when the bundle cannot run here, has
    parts missing, or leaves a parameter of its network without weights; what its own code raises passes through.
    """
    terms = terms or Terms(output=output)
    chosen = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    configs = engine.with_configs(terms.engine, terms.configs, bundle, on_gpu=chosen.type == "cuda")
    reading = read_bundle(bundle.resolve(), configs)
    # The bundle's own code is the package `scripts` below its root: one bundle per process.
    sys.path.insert(0, str(reading.root))
    # A bundle stays as it was added, where it lies: nothing compiled is left in it.
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    if problems := obstacles(reading):
        raise ModelFailed("; ".join(problems))
    shims = list(apply_shims(reading))
    faster.install()
    found = replace_edges(
        reading.config, bundle=reading.root, scratch=scratch.resolve(), device=str(chosen), weights=weights
    )
    parser = ConfigParser(reading.config)
    parser.read_meta(reading.metadata.model_dump(exclude_unset=True))
    witness = Witness()
    with witness.watching(), images.loaders_replaced(), torch.no_grad():
        session, loaded = _built(parser, found, reading.root, terms, chosen)
        modules = [each for each in parser.ref_resolver.resolved_content.values() if isinstance(each, torch.nn.Module)]
        network = session.network if isinstance(session.network, torch.nn.Module) else None
        unfilled, count = witness.unfilled(network, modules)
        looked_for = [*(f"the checkpoint loader {at}" for at in found.checkpoints), *CONVENTION]
        refuse_unfilled(unfilled, count, looked_for)
    carried = engine.carried(
        terms.engine,
        session.network,
        session.inferer,
        device=chosen,
        scratch=scratch,
        own_evaluator=session.evaluation is not None,
    )
    session = replace(session, network=carried.network, inferer=carried.inferer)
    provenance = {
        "runtime": f"MONAI {monai.__version__}",
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type,
        "bundle": f"{reading.metadata.name or bundle.name} {reading.metadata.version}".strip(),
        "configuration": " + ".join(reading.files),
        "mode": "direct" if session.evaluation is None else "evaluator",
        "weights_from": ", ".join(loaded or dict.fromkeys(witness.files)),
        "shims": ", ".join([*shims, *sorted(witness.shims)]),
        "engine": carried.said,
    }
    return replace(session, provenance={key: value for key, value in provenance.items() if value})


def _built(
    parser: ConfigParser, found: Edges, root: Path, terms: Terms, device: torch.device
) -> tuple[Session, list[str]]:
    """Make the parts of the bundle and fill its networks; return them, and where the weights came from."""
    config: dict[str, Any] = parser.get()
    for index, step in enumerate(config["initialize"] if isinstance(config.get("initialize"), list) else ()):
        if not any(ours in str(step) for ours in (*_OURS, *(f"@{at}" for at in found.checkpoints))):
            parser.get_parsed_content(f"initialize::{index}")
    if "preprocessing" not in config:
        raise ModelFailed("the bundle has no 'preprocessing', and its evaluator reads no dataset with a 'transform'")
    network, loaded = _network(parser, found, root)
    evaluator = config.get("evaluator")
    postprocessing = parser.get_parsed_content("postprocessing") if "postprocessing" in config else None
    evaluation = None
    if found.own_evaluator and isinstance(evaluator, dict):
        # Needs ignite, which the direct way does without.
        from meddaemon.inference.bundles.evaluation import Evaluation  # noqa: PLC0415

        if "postprocessing" in evaluator:
            postprocessing = None
        made = parser.get_parsed_content("evaluator")
        evaluation = Evaluation(made, parser.get_parsed_content(BATCHES))
    session = Session(
        preprocessing=parser.get_parsed_content("preprocessing"),
        network=network.to(device).eval() if isinstance(network, torch.nn.Module) else network,
        inferer=parser.get_parsed_content("inferer") if "inferer" in config else SimpleInferer(),
        postprocessing=postprocessing if postprocessing is not None or evaluation else Compose([]),
        terms=terms,
        device=device,
        frame=BoxFrame.VOXEL if found.world_left_out else terms.frame,
        box_mode=found.box_mode,
        evaluation=evaluation,
    )
    return session, loaded


def _network(parser: ConfigParser, found: Edges, root: Path) -> tuple[Any, list[str]]:
    """Make the network of the bundle and load every checkpoint; return it, and where its weights came from."""
    config: dict[str, Any] = parser.get()
    key = next((key for key in ("network", "network_def") if key in config), None)
    if key is None:
        script = next((root / name for name in CONVENTION if (root / name).is_file()), None)
        if script is None or not is_torchscript(script):
            raise ModelFailed("the bundle has no 'network', and no TorchScript model under models/ that would be one")
        return torch.jit.load(str(script), map_location="cpu"), [f"models/{script.name}"]  # type: ignore[no-untyped-call]
    network = parser.get_parsed_content(key)
    loaded = []
    for at in found.checkpoints:
        checkpoint = parser.get_parsed_content(at)
        # One that is switched off is None; a TorchScript network brought its own weights.
        if isinstance(checkpoint, Checkpoint) and checkpoint.fills_modules:
            checkpoint.load()
            loaded.append(f"{checkpoint.path.name} by {at}")
    if not loaded and isinstance(network, torch.nn.Module) and not isinstance(network, torch.jit.ScriptModule):
        by_convention = fill_by_convention(root, network)
        loaded += [by_convention] if by_convention else []
    return network, loaded


def _keys_of(transform: object) -> set[str] | None:
    """Return the keys that the loaders in a transform take; None where the pipeline knows no keys."""
    if isinstance(transform, TakeImage):
        return None
    if isinstance(transform, TakeImaged):
        return set(map(str, transform.keys))
    keys: set[str] = set()
    for each in getattr(transform, "transforms", ()):
        taken = _keys_of(each)
        if taken is None:
            return None
        keys |= taken
    return keys


def _image(feeds: Sequence[Feed], inputs: Mapping[str, Source], index: int) -> MetaTensor:
    """Return the image of one key: of its one input, or of several as its channels."""
    sources = [inputs[feed.name] for feed in feeds]
    if len(sources) > 1:
        volumes = [source for source in sources if isinstance(source, Volume)]
        if len(volumes) < len(sources) or feeds[0].kind is not InputKind.VOLUME:
            raise ModelFailed(f"only volumes can be channels of one key, which {feeds[0].key!r} has several inputs for")
        return images.as_channels(volumes)
    source, kind = sources[0], feeds[0].kind
    if isinstance(source, Volume):
        return images.as_plane(source, index) if kind is InputKind.SLICES else images.as_image(source)
    if isinstance(source, Signal):
        return images.as_signal(source)
    if kind is InputKind.CINE:
        return images.as_cine(source)
    if index >= len(source.sources):
        raise InputRefused("too_few_pictures", f"{feeds[0].name} has {len(source.sources)} pictures, not {index + 1}")
    return images.as_picture(source, index)


def _straight(source: Source, by: Straightened | None) -> Source:
    return by.volume(source) if by is not None and isinstance(source, Volume) else source


def _returned(found: Prediction, by: Straightened) -> Prediction:
    """Return what was found in a straightened stack where it lies among the planes of the source."""
    boxes = []
    for box in found.boxes:
        corners = [
            by.point((plane, row, column)) for plane, row, column in product(*zip(box.low, box.high, strict=True))
        ]
        boxes.append(
            replace(
                box, low=tuple(map(float, np.min(corners, axis=0))), high=tuple(map(float, np.max(corners, axis=0)))
            )
        )
    masks = found.masks
    return replace(
        found,
        labels=None if found.labels is None else by.labels(found.labels),
        masks=None if masks is None else np.stack([by.labels(each.astype(np.uint8)) > 0 for each in masks]),
        boxes=tuple(boxes),
        landmarks=tuple(
            replace(each, position=by.point((each.position[0], each.position[1], each.position[2])))
            for each in found.landmarks
        ),
        provenance={**found.provenance, "straightened": "the model saw the planes on a straight grid"},
    )


def _image_of(data: Any, terms: Terms) -> Any:
    """Return what the network takes of preprocessed data."""
    if not isinstance(data, Mapping):
        return data
    if CommonKeys.IMAGE in data:
        return data[CommonKeys.IMAGE]
    if terms.feeds:
        return data[terms.feeds[0].key]
    return next(value for value in data.values() if isinstance(value, MetaTensor))


def _unbatched(raw: Any, image: MetaTensor) -> Any:
    """Return the first of a batch, which knows where it lies.

    TorchScript returns plain tensors, which `Invertd` would skip.
    """
    if isinstance(raw, torch.Tensor):
        return MetaTensor(torch.as_tensor(raw[0]), meta=dict(image.meta))
    if isinstance(raw, Mapping):
        return {key: _unbatched(value, image) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        # A detector returns a dictionary for each image, anything else a batch for each output.
        return raw[0] if len(raw) == 1 and isinstance(raw[0], Mapping) else [_unbatched(each, image) for each in raw]
    return raw


def _segmented(
    result: Prediction, drawn: Sequence[outputs.Drawn], segments: Sequence[int], *, flat: bool
) -> Prediction:
    """Return the result with what was drawn: on a volume, or on each of its slices or pictures."""
    doubts = tuple(dict.fromkeys(doubt for each in drawn for doubt in each.doubts))
    if any(each.masks is not None for each in drawn):
        # Where segments overlap in one slice, those that happen not to in another are masks there, too.
        masks = [
            np.stack([each.labels == segment for segment in segments]) if each.masks is None else each.masks
            for each in drawn
        ]
        return replace(result, masks=np.stack(masks, axis=1) if flat else masks[0], doubts=doubts)
    labels = [each.labels for each in drawn if each.labels is not None]
    drawn_on: Any = np.stack(labels) if flat else labels[0]
    return replace(result, labels=drawn_on, doubts=doubts)


def _in_plane(found: Any, plane: int, first: Source) -> Any:
    """Return a box or landmark of a slice where it lies in the volume; one of a volume or picture as it is."""
    if isinstance(found, Box) and isinstance(first, Volume) and len(found.low) == 2:
        return replace(found, low=(plane - 0.5, *found.low), high=(plane + 0.5, *found.high))
    if isinstance(found, Landmark) and isinstance(first, Volume) and len(found.position) == 2:
        return replace(found, position=(float(plane), *found.position))
    return found


@contextmanager
def _timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started
