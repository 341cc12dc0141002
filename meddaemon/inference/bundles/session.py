"""A bundle, loaded once and run again and again. Only for the model child."""

import importlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose, apply_transform
from monai.utils import CommonKeys

from meddaemon.domain.contract import BoxFrame, Combine, InputKind, ModelKind, Saliency
from meddaemon.domain.errors import InputRefused, ModelFailed, NotEvaluable
from meddaemon.domain.picture import Pictures, Signal
from meddaemon.domain.result import Artefact, ArtefactKind, Box, Landmark, Prediction
from meddaemon.domain.volume import Volume
from meddaemon.inference.bundles import augmentation, engine, explain, faster, frugal, images, outputs, probabilities
from meddaemon.inference.bundles.artefacts import Values, assembled, bounded
from meddaemon.inference.bundles.edges import BATCHES, Edges, replace_edges
from meddaemon.inference.bundles.images import Grid, Source, TakeImage, TakeImaged
from meddaemon.inference.bundles.kinds import obstacles
from meddaemon.inference.bundles.reading import read_bundle
from meddaemon.inference.bundles.shims import apply_shims
from meddaemon.inference.bundles.terms import Feed, Terms
from meddaemon.inference.bundles.turns import Turns
from meddaemon.inference.bundles.weights import (
    CONVENTION,
    Checkpoint,
    Witness,
    fill_by_convention,
    is_torchscript,
    refuse_unfilled,
)
from meddaemon.inference.ladder import Shapes
from meddaemon.inference.plan import AS_SHIPPED, RunPlan
from meddaemon.inference.regrid import Straightened, is_straight

# Of `initialize`, what runs, sets seeds or is there for savers is ours.
_OURS = ("@evaluator", "@trainer", "set_determinism", "register_writer")
_SCORING = frozenset({ModelKind.CLASSIFICATION, ModelKind.REGRESSION})


_NO_PROBABILITIES = "the bundle gives no probabilities that could be kept, but labels alone"
KEPT = "meddaemon_kept"
"""Where the probabilities of each label stand in the data of an item that has been run."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One run of the network: the preprocessed data, where it lies in the source, and which part of that it is."""

    data: Any
    grid: Grid
    source: tuple[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Inputs that are preprocessed, ready for the network.

    `first` is the first input, of which no values are kept: the memory that it came in can go. `straightened` is how
    it, a stack that is no box of voxels, was made one: what is found returns by it.
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
    turns: Turns = field(default_factory=Turns)
    seen: dict[str, int] = field(default_factory=dict)
    """What was seen of the last run: how many `outputs` (channels) the network had."""

    @property
    def output(self) -> str:
        """Key of the prediction in the bundle's data dictionary."""
        return self.terms.output

    def predict(self, inputs: Mapping[str, Source], plan: RunPlan = AS_SHIPPED) -> Prediction:
        """Run the bundle on its inputs by name; what it finds lies on the grid of the first, whatever the plan.

        Raises `InputRefused` when the inputs do not belong together, and `ModelFailed` when the result is not what
        the contract says, or lies nowhere. Whatever the bundle's own code raises passes through.
        """
        return self.infer(self.prepare(inputs), plan)

    def prepare(self, inputs: Mapping[str, Source]) -> Prepared:
        """Preprocess the inputs; may run while another result is inferred, in a thread of its own (see `Turns`)."""
        seconds: dict[str, float] = {}
        feeds = self.terms.feeds or tuple(Feed(name=name, key=name) for name in inputs)
        with self.turns.preparing(self.preprocessing), torch.no_grad(), _timed("preprocess", seconds):
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
        return Prepared(
            first=_hollow(inputs[first]), straightened=straightened.get(first), items=items, seconds=seconds
        )

    def shapes(self, prepared: Prepared) -> Shapes:
        """Return what is known of a run of these inputs: what it will take can be estimated."""
        item = prepared.items[0]
        image = tuple(map(int, _image_of(item.data, self.terms).shape))
        window, batch = getattr(self.inferer, "roi_size", ()), getattr(self.inferer, "sw_batch_size", 1)
        lengths = (window,) * len(image[1:]) if isinstance(window, int) else tuple(window or ())
        return Shapes(
            image=image,
            source=tuple(map(int, item.grid.shape)),
            # A length that is no number, or none, is all of the image.
            window=tuple(
                each if isinstance(each, int) and each > 0 else size
                for each, size in zip(lengths, image[1:], strict=False)
            ),
            window_batch=batch if isinstance(batch, int) and batch > 0 else 1,
            outputs=self.seen.get("outputs", 0),
            items=len(prepared.items),
            on_gpu=self.device.type == "cuda",
        )

    def infer(self, prepared: Prepared, plan: RunPlan = AS_SHIPPED) -> Prediction:
        """Run the network on prepared inputs as planned, and return what it finds on the grid of the first input."""
        seconds = {"infer": 0.0, "postprocess": 0.0}
        with self.turns.inferring(), torch.no_grad():
            way = self._way(plan)
            if self.terms.asked.augmentation:
                prediction = self._averaged(prepared, way, seconds)
            else:
                found = [(item, self._run(item, way, seconds)) for item in prepared.items]
                with _timed("postprocess", seconds):
                    prediction = self._with_artefacts(self._prediction(prepared.first, found), prepared, found)
            started = time.perf_counter()
            if prepared.straightened is not None:
                prediction = _returned(prediction, prepared.straightened)
        seconds["postprocess"] += time.perf_counter() - started
        provenance = {**prediction.provenance, **({"memory": way.told} if way.told else {})}
        return replace(prediction, seconds={**prepared.seconds, **seconds}, provenance=provenance)

    def _way(self, plan: RunPlan) -> frugal.Way:
        asked = self.terms.asked
        if not plan.class_by_class or not (asked.kept or asked.augmentation):
            return frugal.Way(self.inferer, self.postprocessing, plan)
        # What is kept or averaged are the probabilities of all classes.
        way = frugal.Way(self.inferer, self.postprocessing, replace(plan, class_by_class=False))
        way.told = "the classes at once: the contract asks for more than labels"
        return way

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
        if count > 1 and self.terms.kind in _SCORING and self.terms.combine is Combine.REFUSE:
            raise NotEvaluable(
                "several_images",
                f"{feeds[0].name} has {count} images, and the contract has no 'combine' that says what becomes of"
                " their scores",
                numbers={"images": count, "series_instance_uid": first.series_instance_uid},
            )
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

    def _run(self, item: Item, way: frugal.Way, seconds: dict[str, float]) -> Mapping[Any, Any]:
        """Return the data of one item with the prediction of the network in it, postprocessed."""
        if self.evaluation is not None:
            with _timed("infer", seconds):
                result: dict[Any, Any] = self.evaluation.run(item.data, way.adapted)
                way.leave("the bundle's own evaluator runs them")
                result.setdefault(CommonKeys.IMAGE, _image_of(item.data, self.terms))
            return result
        image = _image_of(item.data, self.terms)
        with _timed("infer", seconds):
            raw = way.infer(image.unsqueeze(0).to(self.device), self.network)
        self.seen["outputs"] = max(way.outputs, self.seen.get("outputs", 0))
        with self.turns.postprocessing(), _timed("postprocess", seconds):
            data = self._with_raw(item, raw)
            del raw
            after = self._postprocessed(item, data) if self.terms.asked.kept else way.finish(data)
        return after if isinstance(after, Mapping) else {self.output: after}

    def _with_raw(self, item: Item, raw: Any) -> dict[Any, Any]:
        image = _image_of(item.data, self.terms)
        data = dict(item.data) if isinstance(item.data, Mapping) else {CommonKeys.IMAGE: image}
        data[CommonKeys.PRED] = _unbatched(raw, image)
        return data

    def _averaged(self, prepared: Prepared, way: frugal.Way, seconds: dict[str, float]) -> Prediction:
        """Ask under every change; return the mean of the answers, and how far they differ."""
        asked, segments, drawing = self.terms.asked, self.terms.segments, self.terms.kind is ModelKind.SEGMENTATION
        means = [augmentation.Mean(self.postprocessing, self.output) for _ in prepared.items]
        each: list[Prediction] = []
        volumes: list[list[float]] = []
        for change in augmentation.changes(asked.augmentation):
            found = [
                (item, self._run_changed(item, change, mean, way, seconds))
                for item, mean in zip(prepared.items, means, strict=True)
            ]
            with _timed("postprocess", seconds):
                answer = self._prediction(prepared.first, found)
                each.append(answer)
                if drawing:
                    back = answer if prepared.straightened is None else _returned(answer, prepared.straightened)
                    volumes.append(augmentation.volumes_ml(back, segments))
        with self.turns.postprocessing(), _timed("postprocess", seconds):
            if not drawing:
                return self._with_artefacts(augmentation.mean_of_numbers(each, asked.augmentation), prepared, ())
            spread_ml = tuple(map(float, np.std(volumes, axis=0))) if volumes[0] else ()
            return replace(self._mean_drawing(prepared, means, each), volume_spread_ml=spread_ml)

    def _mean_drawing(
        self, prepared: Prepared, means: Sequence[augmentation.Mean], each: list[Prediction]
    ) -> Prediction:
        """Return what is drawn from the mean probabilities or, where there are none, by the majority of `each`."""
        asked = self.terms.asked
        if all(mean.is_known for mean in means):
            # Not needed any more, and they are large.
            each.clear()
            found = [
                (item, self._postprocessed(item, mean.data(), mean.rest))
                for item, mean in zip(prepared.items, means, strict=True)
            ]
            drawn, how = self._prediction(prepared.first, found), "mean of the probabilities"
            made = self._with_artefacts(drawn, prepared, found, self._spreads(prepared, means, ()))
        else:
            if asked.kept:
                raise ModelFailed(_NO_PROBABILITIES)
            drawn, how = augmentation.majority(each, self.terms.segments), "majority"
            made = self._with_artefacts(drawn, prepared, (), self._spreads(prepared, (), each))
        return replace(made, provenance={**made.provenance, **augmentation.said(asked.augmentation, how)})

    def _run_changed(
        self,
        item: Item,
        change: augmentation.Change,
        mean: augmentation.Mean,
        way: frugal.Way,
        seconds: dict[str, float],
    ) -> Mapping[Any, Any]:
        image = _image_of(item.data, self.terms)
        with _timed("infer", seconds):
            changed = change.apply(image.unsqueeze(0).to(self.device))
            raw = change.undo(way.infer(changed, self.network), image.shape[1:])
        self.seen["outputs"] = max(way.outputs, self.seen.get("outputs", 0))
        with self.turns.postprocessing(), _timed("postprocess", seconds):
            after = mean.add(self._with_raw(item, raw))
        return after if isinstance(after, Mapping) else {self.output: after}

    def _spreads(
        self, prepared: Prepared, means: Sequence[augmentation.Mean], each: Sequence[Prediction]
    ) -> tuple[Artefact, ...]:
        """Return how far each voxel differs among the answers: by their probabilities, or by what they drew."""
        asked, segments = self.terms.asked, self.terms.segments
        if not asked.augmentation.spread:
            return ()
        sources = [item.source for item in prepared.items]
        if means:
            placed = [
                probabilities.kept(mean.spread(), item.grid, self._seen(item), wanted=segments, segments=segments)
                for item, mean in zip(prepared.items, means, strict=True)
            ]
            parts = {label: [one[label] for one in placed] for label in segments}
        else:
            votes = augmentation.spread_of_votes(each, segments)
            flat = len(prepared.items[0].grid.shape) == 2
            parts = {label: list(votes[label]) if flat else [votes[label]] for label in segments}
        return tuple(
            artefact
            for label, name in asked.named
            for artefact in assembled(ArtefactKind.SPREAD, name, parts[label], sources)
        )

    def _postprocessed(self, item: Item, data: dict[Any, Any], rest: Sequence[Any] | None = None) -> Any:
        """Return the data after the bundle's postprocessing, and what was asked for of what came before its end.

        `rest` are the steps that are left, where others have been taken and the data hold probabilities.
        """
        asked = self.terms.asked
        if not asked.kept:
            if rest is None:
                return apply_transform(self.postprocessing, data)
            after = probabilities.run(rest, data, self.output, lambda _: None)
            return after if isinstance(after, Mapping) else {self.output: after}
        taken: dict[int, Values] = {}
        seen = self._seen(item)
        wanted, segments = [label for label, _ in asked.kept], self.terms.segments
        after = probabilities.run(
            probabilities.steps_of(self.postprocessing) if rest is None else rest,
            data,
            self.output,
            known=rest is not None,
            take=lambda found: taken.update(
                probabilities.kept(found, item.grid, seen, wanted=wanted, segments=segments)
            ),
        )
        if not taken and _is_finite(data[CommonKeys.PRED]):
            raise ModelFailed(_NO_PROBABILITIES)
        return {**(after if isinstance(after, Mapping) else {self.output: after}), KEPT: taken}

    def _with_artefacts(
        self,
        prediction: Prediction,
        prepared: Prepared,
        found: Sequence[tuple[Item, Mapping[Any, Any]]],
        spreads: Sequence[Artefact] = (),
    ) -> Prediction:
        """Return the prediction with what is to be kept beside it, as it lies on the grid that the model was given."""
        asked = self.terms.asked
        sources = [item.source for item in prepared.items]
        made: list[Artefact] = []
        for label, name in asked.kept:
            parts = [data[KEPT][label] for _, data in found if label in data[KEPT]]
            if len(parts) < len(found):
                # Nothing but NaN, for which the prediction is marked.
                continue
            made += assembled(ArtefactKind.PROBABILITY, name, parts, sources)
        made += spreads
        if asked.explanation.method is not Saliency.NONE:
            # Where each image keeps its own scores, these are what is explained on it.
            own = prediction.sources or sources
            seen = [
                (_image_of(item.data, self.terms), item.grid, source)
                for item, source in zip(prepared.items, own, strict=True)
            ]
            count = len(asked.answers)
            groups = [[one] for one in seen] if prediction.sources else [seen]
            # What carries a network out otherwise has no gradients, and no layers to look into.
            with engine.as_shipped(self.network) as network:
                for index, group in enumerate(groups):
                    scores = prediction.scores[index * count : (index + 1) * count]
                    made += explain.saliency(network, group, scores, asked, self.device)
        if not made:
            return prediction
        kept, left_out = bounded(made)
        said = {"artefacts": left_out} if left_out else {}
        return replace(prediction, artefacts=kept, provenance={**prediction.provenance, **said})

    def _seen(self, item: Item) -> Grid | None:
        image = _image_of(item.data, self.terms)
        return images.grid_of(image) if isinstance(image, MetaTensor) else None

    def _prediction(self, first: Source, found: Sequence[tuple[Item, Mapping[Any, Any]]]) -> Prediction:
        result = Prediction(
            series_instance_uid=first.series_instance_uid,
            geometry=first.geometry if isinstance(first, Volume) else None,
            pictures=first.grid if isinstance(first, Pictures) else None,
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
                return _scored(result, numbers_of, self.terms.combine, first)
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
        return outputs.drawn(data[self.output], item.grid, self.terms.segments, seen=self._seen(item))

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
        session, loaded = _built(parser, found, reading.root, terms, chosen, witness)
        modules = [each for each in parser.ref_resolver.resolved_content.values() if isinstance(each, torch.nn.Module)]
        network = session.network if isinstance(session.network, torch.nn.Module) else None
        unfilled, count = witness.unfilled(network, modules)
        looked_for = [*(f"the checkpoint loader {at}" for at in found.checkpoints), *CONVENTION]
        refuse_unfilled(unfilled, count, looked_for)
    _check_asked(session)
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
    parser: ConfigParser, found: Edges, root: Path, terms: Terms, device: torch.device, witness: Witness
) -> tuple[Session, list[str]]:
    """Make the parts of the bundle and fill its networks; return them, and where the weights came from."""
    config: dict[str, Any] = parser.get()
    for index, step in enumerate(config["initialize"] if isinstance(config.get("initialize"), list) else ()):
        if not any(ours in str(step) for ours in (*_OURS, *(f"@{at}" for at in found.checkpoints))):
            parser.get_parsed_content(f"initialize::{index}")
    if "preprocessing" not in config:
        raise ModelFailed("the bundle has no 'preprocessing', and its evaluator reads no dataset with a 'transform'")
    network, loaded = _network(parser, found, root, witness)
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
        turns=Turns(apart=evaluation is not None),
    )
    return session, loaded


def _check_asked(session: Session) -> None:
    """Raise `ModelFailed` where the bundle cannot give what its contract asks for beside the answer."""
    asked = session.terms.asked
    explain.check(session.network, asked)
    if asked.explanation.method is not Saliency.NONE and type(session.inferer) is not SimpleInferer:
        kind = type(session.inferer).__name__
        raise ModelFailed(f"[explain] needs a network that sees the image at once, and here a {kind} cuts it")
    if (asked.kept or asked.augmentation) and session.evaluation is not None:
        what = "keep_probabilities" if asked.kept else "[augmentation]"
        raise ModelFailed(f"{what} needs the steps of a bundle one by one, and this one has an evaluator of its own")


def _network(parser: ConfigParser, found: Edges, root: Path, witness: Witness) -> tuple[Any, list[str]]:
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
    filled = isinstance(network, torch.nn.Module) and not witness.unfilled(network, ())[0]
    if (
        not loaded
        and not filled
        and isinstance(network, torch.nn.Module)
        and not isinstance(network, torch.jit.ScriptModule)
    ):
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


def _hollow(source: Source) -> Source:
    """Return an input whose values take no memory: 0 everywhere."""

    def zeros(values: Any) -> Any:
        return np.broadcast_to(np.zeros((), values.dtype), values.shape)

    if isinstance(source, Volume):
        return replace(source, voxels=zeros(source.voxels))
    if isinstance(source, Pictures):
        return replace(source, frames=zeros(source.frames))
    return replace(source, samples=zeros(source.samples))


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
        artefacts=tuple(replace(each, values=by.values(each.values)) for each in found.artefacts),
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


def _is_finite(raw: Any) -> bool:
    return not isinstance(raw, torch.Tensor) or bool(torch.isfinite(raw).all())


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


def _scored(result: Prediction, numbers_of: Sequence[tuple[float, ...]], combine: Combine, first: Source) -> Prediction:
    """Return the result with the scores of its images, combined or each by itself."""
    doubts = tuple(dict.fromkeys(doubt for each in numbers_of for doubt in outputs.score_doubts(each)))
    if combine is Combine.EACH:
        result = replace(result, sources=_sources(first), scores=tuple(chain.from_iterable(numbers_of)), doubts=doubts)
    elif len(numbers_of) == 1:
        result = replace(result, scores=numbers_of[0], doubts=doubts)
    else:
        # What is not a number stays none: neither a mean nor a maximum hides it.
        combined = (np.max if combine is Combine.MAX else np.mean)(numbers_of, axis=0)
        result.provenance["scores"] = f"{combine.value} of {len(numbers_of)} images"
        result = replace(result, scores=tuple(map(float, combined)), doubts=doubts)
    return result


def _sources(first: Source) -> tuple[tuple[str, int], ...]:
    """Return the image of each run: of pictures each, of slices each plane; of a waveform or a volume there is none."""
    if isinstance(first, Pictures):
        return first.sources
    if isinstance(first, Volume):
        return tuple(zip(first.geometry.sop_instance_uids, first.geometry.frame_numbers, strict=True))
    return ()


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
