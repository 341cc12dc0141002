"""A contract to begin with: what a bundle's metadata says, with what only a person can say left open.

Metadata are not trusted: bundles of the model zoo call MR values Hounsfield units and count channels that their
configurations do not feed. So nothing is filled in that would make a result wrong without anybody having looked:
codes are empty, and `load_contract` names each of them by file and line until they are not.
"""

import colorsys
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meddaemon.deploy.audit import read_metadata
from meddaemon.domain.contract import ModelKind

_MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR", "pet": "PT", "pt": "PT", "xr": "DX", "us": "US"}
_WITH_PLACES = (ModelKind.DETECTION, ModelKind.LANDMARKS)
_BACKGROUND = re.compile(r"back[\s_-]?ground|other|none|unlabel", re.IGNORECASE)
_ANATOMICAL_STRUCTURE = '{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }'


def scaffold(bundle: Path, name: str, folder: str) -> str:
    """Return the text of a contract for a bundle that lies in `folder` beside it."""
    metadata = read_metadata(bundle)
    formats = _table(metadata.get("network_data_format"))
    outputs = _table(formats.get("outputs"))
    output, described = next(iter(outputs.items()), ("pred", {}))
    kind = _kind(metadata, _table(described))
    return "\n".join(
        [
            "# Written from the bundle's metadata, which may be wrong: complete and check every line.",
            f"# Then: meddaemon models show {name}; meddaemon models check {name}",
            "",
            f"name = {_quoted(name)}",
            f"title = {_quoted(_line(metadata.get('name')) or name)}",
            f"version = {_quoted(_line(metadata.get('version')) or '0')}",
            f"manufacturer = {_quoted(_line(metadata.get('authors')) or _line(metadata.get('copyright')))}",
            f"bundle = {_quoted(folder)}",
            f"output = {_quoted(_line(output))}",
            *([] if kind is ModelKind.SEGMENTATION else [f'kind = "{kind.value}"']),
            *(["#keep_probabilities = true  # or names of segments"] if kind is ModelKind.SEGMENTATION else []),
            *(['#frame = "ras"  # in which the bundle gives positions'] if kind in _WITH_PLACES else []),
            *_inputs(_table(formats.get("inputs")), metadata),
            *_meaning(kind, _channels(_table(described))),
            *_beside(kind),
            "",
            f"#[engine]  # to make it faster, behind a comparison with the bundle as shipped: models tune {name}",
            "",
        ]
    )


def _inputs(inputs: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[str]:
    for key, raw in inputs.items() or [("image", {})]:
        said = _table(raw)
        modality = _MODALITIES.get(_line(said.get("modality")).casefold(), "")
        yield from ("", "[[inputs]]", f"key = {_quoted(_line(key))}")
        channels = said.get("num_channels")
        if isinstance(channels, int) and channels > 1:
            named = ", ".join(_channels(said).values())
            yield f"# The bundle takes {channels} channels{f' ({named})' if named else ''}: if those are"
            yield "# several series, each needs a table [[inputs]] of its own with this key, in this order."
        unit = _line(said.get("format")).casefold()
        if unit == "hounsfield" and modality not in {"", "CT"}:
            yield f"# The metadata call the values of this {modality} Hounsfield units, which they cannot be."
        if shape := said.get("spatial_shape"):
            yield f"# The network takes {_line(json.dumps(shape))} voxels at a time."
            if isinstance(shape, list) and len(shape) == 2:
                yield '#kind = "pictures"  # radiographs and the like, each by itself; or "slices" of a volume'
        if task := _line(metadata.get("task")):
            yield f"# Task: {task}"
        yield "# Which series it may have: narrow this down to what the model was made for."
        yield f'series = {{ attribute = "Modality", equals = {_quoted(modality)} }}'


def _meaning(kind: ModelKind, channels: Mapping[int, str]) -> Iterator[str]:
    if kind is ModelKind.SEGMENTATION:
        wanted = {label: text for label, text in channels.items() if label > 0 and not _is_background(text)}
        for index, (label, text) in enumerate((wanted or {1: ""}).items()):
            yield from ("", "[[segments]]", f"label = {label}", f"name = {_quoted(text)}")
            yield f"category = {_ANATOMICAL_STRUCTURE}  # else another of CID 7150"
            yield f'type = {{ value = "", scheme = "SCT", meaning = "" }}  # choose a code of CID 7151{_hint(text)}'
            yield f"colour = {list(_colour(index))}"
            yield '#measure = ["volume", "diameter", "mean"]  # and surface, long_axis, short_axis, deviation, ...'
            yield "#plausible_volume_ml = { min = 1, max = 1000 }"
            yield "#lesions = { minimum_ml = 0.1 }  # each connected part is a segment of its own, counted and measured"
    elif kind is ModelKind.CLASSIFICATION:
        for text in channels.values() or [""]:
            yield from ("", "[[classes]]", f"name = {_quoted(text)}")
            yield 'finding = { value = "", scheme = "SCT", meaning = "" }  # choose a code for what it finds'
            yield "#threshold = 0.5"
            yield '#group = "softmax"  # classes of one group exclude each other'
    elif kind is ModelKind.REGRESSION:
        yield from ("", "[[scores]]", 'name = { value = "", scheme = "SCT", meaning = "" }  # what the number measures')
        yield 'unit = { value = "", scheme = "UCUM", meaning = "" }  # choose a unit of UCUM'
    else:
        for label, text in (channels or {1: ""}).items():
            yield from ("", "[[objects]]", f"label = {label}", f"name = {_quoted(text)}")
            yield 'finding = { value = "", scheme = "SCT", meaning = "" }  # choose a code for what it finds'


def _beside(kind: ModelKind) -> Iterator[str]:
    """Yield what may be kept beside the answer."""
    if kind in {ModelKind.CLASSIFICATION, ModelKind.REGRESSION}:
        yield from ("", "#[explain]", '#method = "gradcam"  # or gradcam++, occlusion: what the answer rests on')
        if kind is ModelKind.CLASSIFICATION:
            yield '#when = "positive"  # only of what is found'
    if kind not in _WITH_PLACES:
        yield from ("", "#[augmentation]", '#flips = ["x", "y", "xy"]  # asked again under each, and averaged')


def _kind(metadata: Mapping[str, Any], described: Mapping[str, Any]) -> ModelKind:
    sources = (described.get("type"), described.get("format"), metadata.get("task"))
    said = " ".join(map(_line, sources))
    for word, kind in (
        ("landmark", ModelKind.LANDMARKS),
        ("classif", ModelKind.CLASSIFICATION),
        ("probabilit", ModelKind.CLASSIFICATION),
        ("regress", ModelKind.REGRESSION),
        ("detect", ModelKind.DETECTION),
    ):
        if word in said.casefold() and "segment" not in said.casefold():
            return kind
    return ModelKind.SEGMENTATION


def _channels(described: Mapping[str, Any]) -> dict[int, str]:
    """Return what the metadata call each channel."""
    return {
        int(key): _line(text)
        for key, text in _table(described.get("channel_def")).items()
        if re.fullmatch(r"[0-9]{1,4}", key)
    }


def _is_background(text: str) -> bool:
    return bool(_BACKGROUND.fullmatch(text.strip()))


def _hint(text: str) -> str:
    """Return a code of CID 7151 whose meaning is what the metadata call the channel, where there is one."""
    # Imported where it is needed: the dictionary costs a third of a second.
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    wanted = re.sub(r"[\s_-]+", " ", text).strip().casefold()
    group = codes.cid7151
    for keyword in group.dir():
        code = getattr(group, keyword)
        if code.scheme_designator == "SCT" and code.meaning.casefold() == wanted:
            return f', perhaps {code.value} "{code.meaning}"'
    return ""


def _colour(index: int) -> tuple[int, int, int]:
    """Return a colour that is far from those of the neighbours: hues a golden angle apart."""
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.65, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _line(value: object) -> str:
    """Return a text as it can stand in one line of a contract: 64 characters, none of them a control or a backslash."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""
    return "".join(each if each.isprintable() and each != "\\" else " " for each in text).strip()[:64]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
