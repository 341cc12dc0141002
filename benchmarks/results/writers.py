"""Who writes a segmentation: we, and highdicom as it comes. Run by itself, this is the child process of one run."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from benchmarks.results.volumes import request_for
from meddaemon.results.encoding import EncodingRequest
from meddaemon.results.envelope import encoded
from meddaemon.results.gate import check
from meddaemon.results.seg import encode_label_map, encode_seg


def ours(request: EncodingRequest, form: str) -> bytes:
    """Write it and let it pass the gate."""
    made = {"binary": encode_seg, "labelmap": encode_label_map}[form](request)
    check([made], request)
    return made.content


def highdicom(request: EncodingRequest, form: str) -> bytes:
    """Write it as highdicom's users do; nobody looks at it."""
    described = [
        SegmentDescription(
            segment_number=segment.number,
            segment_label=segment.label,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Brain,
            algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
        )
        for segment in request.analysis.segments
    ]
    segmentation = Segmentation(
        source_images=request.source.instances,
        pixel_array=np.asarray(request.analysis.labels),
        segmentation_type=SegmentationTypeValues[form.upper()],
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=9000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="benchmark",
        manufacturer_model_name="benchmark",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid={"binary": ExplicitVRLittleEndian, "labelmap": RLELossless}[form],
    )
    return encoded(segmentation)


WRITERS: dict[str, Callable[[EncodingRequest, str], bytes]] = {"ours, and the gate": ours, "highdicom": highdicom}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print what one run took as JSON; its source and its labels are in memory before the clock begins."""
    folder, writer, form, segments = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    labels = np.load(folder / "labels.npy")
    paths = sorted((folder / "series").iterdir())
    request = request_for(paths, labels, segments)
    request.source  # noqa: B018  read once
    dcmread(paths[0])
    before = peak_mb()
    began, used = time.perf_counter(), time.process_time()
    content = WRITERS[writer](request, form)
    took = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used}
    print(json.dumps({**took, "before_mb": before, "peak_mb": peak_mb(), "file_mb": len(content) / 1e6}))


if __name__ == "__main__":
    main()
