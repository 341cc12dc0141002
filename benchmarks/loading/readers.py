"""One reader, one series, one fresh process: `python -m benchmarks.loading.readers NAME FOLDER WARM_UP_FOLDER`.

Prints what it took as JSON. Every reader gives the same thing: int16 real-world values [plane, row, column] in
ascending order along z. Interpreter, imports and a small series of the same syntax come before the clock.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.generic]


def ours(paths: list[Path]) -> Volume:
    from meddaemon.inference.volume import assemble  # noqa: PLC0415

    return assemble(paths).voxels


def pydicom(paths: list[Path]) -> Volume:
    """Read, sort by position, decode and rescale each plane into the volume."""
    from pydicom import dcmread  # noqa: PLC0415

    datasets = sorted(map(dcmread, paths), key=lambda each: float(each.ImagePositionPatient[2]))
    out = np.empty((len(datasets), datasets[0].Rows, datasets[0].Columns), np.int16)
    for plane, dataset in zip(out, datasets, strict=True):
        np.add(dataset.pixel_array, int(dataset.RescaleIntercept), out=plane, casting="unsafe")
        # As soon as a plane is in the volume nobody needs its data set.
        dataset.clear()
    return out


def simpleitk(paths: list[Path]) -> Volume:
    """`ImageSeriesReader` with the names in the right order already, which costs it no scan."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in _in_order(paths)])
    return _view(reader.Execute())


def simpleitk_scan(paths: list[Path]) -> Volume:
    """The same, and GDCM finds files and order itself."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent)))
    return _view(reader.Execute())


_kept: list[object] = []


def _view(image: object) -> Volume:
    """The voxels without a copy; the image must outlive them."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    _kept.append(image)
    return sitk.GetArrayViewFromImage(image)


def gdcm(paths: list[Path]) -> Volume:
    import gdcm as library  # noqa: PLC0415

    planes = []
    for path in paths:
        reader = library.ImageReader()
        reader.SetFileName(str(path))
        if not reader.Read():
            raise RuntimeError("gdcm cannot read it")
        image = reader.GetImage()
        buffer = image.GetBuffer()
        plane = np.frombuffer(buffer.encode("utf-8", "surrogateescape"), np.int16)
        planes.append((image.GetOrigin(2), int(image.GetIntercept()), plane, image.GetDimensions()))
    planes.sort(key=lambda each: each[0])
    out = np.empty((len(planes), planes[0][3][1], planes[0][3][0]), np.int16)
    for target, (_, intercept, plane, _) in zip(out, planes, strict=True):
        np.add(plane.reshape(target.shape), intercept, out=target, casting="unsafe")
    return out


READERS: dict[str, Callable[[list[Path]], Volume]] = {
    "ours": ours,
    "SimpleITK": simpleitk,
    "SimpleITK, scan": simpleitk_scan,
    "pydicom": pydicom,
    "gdcm": gdcm,
}
NAMES = (*READERS, "dcm2niix")


def _in_order(paths: list[Path]) -> list[Path]:
    """The files in the order of their positions, which `series.write` hides in their names."""
    count = len(paths)
    by_number = {int(path.stem): path for path in paths}
    return [by_number[index * 7919 % count] for index in range(count)]


def dcm2niix(folder: Path) -> dict[str, object]:
    """The program as it is: it starts, reads, and writes a NIfTI file to memory."""
    program = shutil.which("dcm2niix")
    if program is None:
        try:
            from dcm2niix import bin as program  # noqa: PLC0415
        except ImportError:
            return {"failed": "not installed"}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as target:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [str(program), "-z", "n", "-b", "n", "-f", "v", "-o", target, str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        files = sorted(Path(target).glob("*.nii"))
        if not files or process.returncode:
            return {"failed": f"ended with {process.returncode}"}
        content = files[0].read_bytes()
    shape = np.frombuffer(content, "<i2", 8, 40)[3:0:-1]
    slope, intercept = np.frombuffer(content, "<f4", 2, 112)
    stored = np.frombuffer(content, {4: "<i2", 512: "<u2"}[int(np.frombuffer(content, "<i2", 1, 70)[0])], offset=352)
    # Rows run upwards in its files.
    values = stored.reshape(shape)[:, ::-1] * (slope or 1) + intercept
    return {
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_kb": usage.ru_maxrss,
        "digest": _digest(values.astype(np.int16)),
        "dtype": "int16",
    }


def _digest(volume: Volume) -> str:
    """What tells volumes of the same values apart from others, whatever their type."""
    digest = hashlib.sha256()
    for plane in volume:
        digest.update(np.ascontiguousarray(plane, dtype=np.int32).tobytes())
    return digest.hexdigest()[:16]


def _status(line: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(each.split()[1]) for each in lines if each.startswith(f"{line}:"))


def measure(name: str, folder: Path, warm_up: Path) -> dict[str, object]:
    if name == "dcm2niix":
        return dcm2niix(folder)
    read, paths = READERS[name], sorted(folder.iterdir())
    try:
        read(sorted(warm_up.iterdir()))
        before = _status("VmRSS")
        begun, cpu = time.perf_counter(), time.process_time()
        volume = read(paths)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    except (RuntimeError, ValueError, AttributeError, ImportError) as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:80]}"}
    peak = _status("VmHWM")
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak_kb": peak,
        "before_kb": before,
        "digest": _digest(volume),
        "dtype": str(volume.dtype),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
