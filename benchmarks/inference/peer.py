"""`python -m monai.bundle run`, a process for each study, as its users have it: NIfTI in, its own savers, NIfTI out."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np

Answer = dict[str, object]


def run(bundle: Path, study: Path, out: Path, labels: Path, timeout: float) -> Answer:
    """Run the bundle on the study in a folder; keep what it drew as `labels` [plane, row, column]."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for file in study.iterdir():
        file.read_bytes()
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs/inference.json")]
    command += ["--meta_file", str(bundle / "configs/metadata.json"), "--bundle_root", str(bundle)]
    command += ["--dataset_dir", str(study), "--output_dir", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=bundle, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {timeout:g} s"}
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = sorted(out.rglob("*.nii.gz"))
    if done.returncode or not found:
        return {"failed": f"ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    drawn = np.asarray(nibabel.load(found[0]).dataobj)
    np.save(labels, np.ascontiguousarray(drawn.reshape(drawn.shape[:3]).transpose()).astype(np.uint16))
    return {
        "seconds": seconds,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        # The largest process that there was so far; all of them ran the same.
        "peak_mb": after.ru_maxrss / 1024,
    }
