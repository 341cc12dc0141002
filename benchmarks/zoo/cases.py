"""What each bundle of the zoo is given: the terms that its contract would have, and synthetic inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meddaemon.domain.contract import BoxFrame, InputKind, ModelKind
from meddaemon.domain.picture import Pictures
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.inference.bundles.terms import Feed, Terms

SEGMENTS = tuple(range(1, 256))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One bundle: its terms, what makes its inputs, and what is changed so that a CPU has done soon, with its reason.

    `oracle`: the network can be replaced by a threshold, and known bodies must come back; `sigmoid`: in every channel.
    """

    terms: Terms
    inputs: Callable[[], Mapping[str, Any]]
    changes: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    oracle: bool = False
    sigmoid: bool = False
    truth: Callable[[], Any] | None = None


def volume(
    shape: tuple[int, int, int], low: float, high: float, spacing: tuple[float, float, float], count: int = 3
) -> Volume:
    """Return an oblique volume with bodies off centre, `high` in `low`."""
    voxels = np.full(shape, low, np.float32)
    voxels[bodies(shape, count)] = high
    tilt, turn = 0.2, -0.15
    rotation = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]) @ np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ (np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float) * spacing)
    affine[:3, 3] = (-60, -40, 300)
    geometry = Geometry(
        shape=shape,
        affine_lps=affine,
        frame_of_reference_uid="2.25.1",
        sop_instance_uids=tuple(f"2.25.2.{plane}" for plane in range(shape[0])),
        frame_numbers=(1,) * shape[0],
    )
    return Volume(voxels=voxels, geometry=geometry, series_instance_uid="2.25.3")


def bodies(shape: tuple[int, ...], count: int = 3) -> Any:
    """Return where the bodies are: balls of up to three sizes, none in the middle."""
    index = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    places = (((0.3, 0.3, 0.25), 0.16), ((0.65, 0.7, 0.3), 0.13), ((0.4, 0.35, 0.75), 0.18))
    return np.any(
        [
            np.linalg.norm(index - np.array(centre[-len(shape) :]), axis=-1) < radius
            for centre, radius in places[:count]
        ],
        axis=0,
    )


def pictures(shape: tuple[int, ...], frames: int = 1, *, high: float = 200.0) -> Pictures:
    values = np.full((frames, *shape), 30.0, np.float32)
    values[:, bodies(shape[:2])] = high
    return Pictures(
        frames=values,
        sources=tuple((f"2.25.4.{frame}", 1) for frame in range(frames)),
        series_instance_uid="2.25.5",
        spacing_mm=(1.0, 1.0),
    )


def _volumes(names: tuple[str, ...], *made: Any) -> Callable[[], Mapping[str, Any]]:
    return lambda: {name: volume(*made) for name in names}


def _segmentation(
    labels: int = 255,
    *,
    low: float = -50,
    high: float = 150,
    shape: tuple[int, int, int] = (40, 80, 80),
    spacing: tuple[float, float, float] = (2.5, 1.2, 1.2),
    extra: Mapping[str, object] | None = None,
    key: str = "image",
    names: tuple[str, ...] = ("image",),
    count: int = 3,
    **rest: Any,
) -> Case:
    feeds = tuple(Feed(name=name, key=key, extra=extra or {}) for name in names)
    terms = Terms(segments=tuple(range(1, labels + 1)), feeds=feeds)
    return Case(
        terms=terms,
        inputs=_volumes(names, shape, low, high, spacing, count),
        truth=lambda: bodies(shape, count),
        **{"oracle": True, **rest},
    )


def _picture(kind: ModelKind, shape: tuple[int, ...], outputs: int = 0, **rest: Any) -> Case:
    output, extra = rest.pop("output", "pred"), rest.pop("extra", {})
    feeds = (Feed(name="image", key="image", kind=InputKind.PICTURES, extra=extra),)
    segments = rest.pop("segments", (1,))
    terms = Terms(kind=kind, outputs=outputs, feeds=feeds, output=output, segments=segments)
    return Case(terms=terms, inputs=lambda: {"image": pictures(shape)}, truth=lambda: bodies(shape[:2]), **rest)


_SMALL = {"low": 0, "high": 100, "spacing": (2.0, 1.5, 1.5)}

CASES: Mapping[str, Case] = {
    "spleen_ct_segmentation": _segmentation(1),
    "swin_unetr_btcv_segmentation": _segmentation(13),
    "lung_nodule_ct_detection": Case(
        terms=Terms(kind=ModelKind.DETECTION, frame=BoxFrame.LPS, feeds=(Feed(name="image", key="image"),)),
        inputs=_volumes(("image",), (40, 96, 96), -800, 100, (1.25, 0.703125, 0.703125)),
    ),
    "valve_landmarks": Case(
        terms=Terms(
            kind=ModelKind.LANDMARKS,
            frame=BoxFrame.VOXEL,
            feeds=(Feed(name="image", key="image", kind=InputKind.CINE),),
        ),
        inputs=lambda: {"image": pictures((256, 256), 3)},
    ),
    "breast_density_classification": _picture(ModelKind.CLASSIFICATION, (400, 300, 3), 4),
    "brats_mri_segmentation": _segmentation(
        4,
        names=("t1c", "t1", "t2", "flair"),
        shape=(40, 64, 64),
        **{**_SMALL, "low": 20},
        changes={"inferer#roi_size": [64, 64, 48]},
        note="ROI 64×64×48 for 240×240×160",
        sigmoid=True,
    ),
    "wholeBody_ct_segmentation": _segmentation(104),
    "vista3d": _segmentation(
        132, extra={"label_prompt": [3]}, changes={"patch_size": [64, 64, 64]}, note="ROI 64³ for 128³", oracle=False
    ),
    "multi_organ_segmentation": _segmentation(7, changes={"inferer#overlap": 0.25}, note="overlap .25 for .625"),
    "pancreas_ct_dints_segmentation": _segmentation(2, changes={"inferer#overlap": 0.25}, note="overlap .25 for .625"),
    "pediatric_abdominal_ct_segmentation": _segmentation(
        3, changes={"inferer#overlap": 0.25}, note="overlap .25 for .75"
    ),
    "prostate_mri_anatomy": _segmentation(
        2, shape=(20, 40, 40), count=1, note="one body: it keeps the largest component", **_SMALL
    ),
    "renalStructures_CECT_segmentation": Case(
        terms=Terms(
            segments=(1, 2, 3, 4, 5), feeds=tuple(Feed(name=name, key=name) for name in ("artery", "vein", "excret"))
        ),
        inputs=_volumes(("artery", "vein", "excret"), (40, 64, 64), -50, 150, (2.5, 1.2, 1.2)),
        truth=lambda: bodies((40, 64, 64)),
        oracle=True,
        sigmoid=True,
    ),
    "renalStructures_UNEST_segmentation": _segmentation(3, shape=(32, 64, 64)),
    "wholeBrainSeg_Large_UNEST_segmentation": _segmentation(
        132, shape=(64, 64, 64), **{**_SMALL, "spacing": (1.0, 1.0, 1.0)}
    ),
    "segmentation_template": _segmentation(3, shape=(32, 64, 64), **_SMALL),
    "spleen_deepedit_annotation": _segmentation(
        1, extra={"guidance": {"spleen": [], "background": []}}, note="without clicks"
    ),
    "ventricular_short_axis_3label": _segmentation(3, shape=(8, 96, 96), **_SMALL),
    "classification_template": _picture(ModelKind.CLASSIFICATION, (128, 128), 4, extra={"label": 1}),
    "endoscopic_inbody_classification": _picture(ModelKind.CLASSIFICATION, (256, 256, 3), 2),
    "endoscopic_tool_segmentation": _picture(ModelKind.SEGMENTATION, (480, 736, 3), oracle=True),
    "pathology_nuclei_classification": Case(
        terms=Terms(
            kind=ModelKind.CLASSIFICATION,
            outputs=4,
            feeds=(
                Feed(name="image", key="image", kind=InputKind.PICTURES),
                Feed(name="label", key="label", kind=InputKind.PICTURES),
            ),
        ),
        inputs=lambda: {"image": pictures((128, 128, 3)), "label": pictures((128, 128), high=255)},
    ),
    "pathology_nuclei_segmentation_classification": _picture(
        ModelKind.SEGMENTATION, (256, 256, 3), output="type_map", segments=SEGMENTS
    ),
    "pathology_nuclick_annotation": _picture(
        ModelKind.SEGMENTATION, (256, 256, 3), extra={"foreground": [[60, 70]]}, note="one click"
    ),
}
NOT_APPLICABLE: Mapping[str, str] = {
    "brats_mri_axial_slices_generative_diffusion": "generative: starts from noise",
    "brats_mri_generative_diffusion": "generative: starts from noise",
    "maisi_ct_generative": "generative: starts from noise",
    "mednist_gan": "generative: starts from noise",
    "pathology_tumor_detection": "whole-slide images",
    "mednist_reg": "a demonstration of registration, without an image to find anything in",
}
