"""The tools of `shared/tools/validators`, over many objects at once.

Their `validate.sh` starts node, a Python for each of three archives and a dozen programs anew for each file: 4 s of
processor time for what takes 0.1 s. Here whatever can take many files is started once. What is asked of each tool, and
which of its messages are its own limits, is theirs: `PxValidate.java`, `ohif_read.mjs`, `store.py`, and `KNOWN` in
`validate.py`. `test_validators.py` holds the two against each other.
"""

import ast
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pydicom import dcmread

from meddaemon.domain.outlet import Edition, ObjectKind
from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import EncodingRequest, encode
from tests.running import wait_until
from tests.system.test_peers import free_port, orthanc

TOOLS = (
    "dciodvfy",
    "dcentvfy",
    "pixelmed",
    "dcmtk",
    "dcmpschk",
    "gdcm",
    "dcmqi",
    "ohif",
    "orthanc",
    "stow",
    "dcmqrscp",
)
PIXELMED = Path("/usr/share/java/pixelmed.jar")
_LEVELS = {
    "error": re.compile(r"\s*(Error|ERROR|FATAL|E:|F:|Exception|\[ERROR\])"),
    "warning": re.compile(r"\s*(Warning|WARN|W:)"),
}
_UNKNOWN = r"labelmap.* no accepted presentation context"
_OF_PICTURES = "SEG .* of drawn_on_pictures"
_LIMITS = (
    # A structure set names the study as an instance (PS3.3 C.8.8.5, type 1): nobody can have its file.
    ("dcentvfy", "RTSTRUCT", r"Missing SOPInstanceUID that was referenced"),
    # OHIF reads no Segmentation of type FRACTIONAL (its issue 1346).
    ("ohif", "PROBABILITY", r"Fractional segmentations are not yet supported"),
    # Orthanc and DCMTK of Debian 12 are older than the class. Whoever does not take it gets the binary edition.
    ("orthanc", "SEG labelmap", _UNKNOWN),
    ("dcmqrscp", "SEG labelmap", _UNKNOWN),
    # They work in space, where pictures do not lie; PixelMed asks for a macro that it refuses, shared and by frame.
    ("dcmqi", _OF_PICTURES, r"Failed to get image directions|nothing was written|no volume written"),
    ("ohif", _OF_PICTURES, r"reading 'ImageOrientationPatient'"),
    ("pixelmed", _OF_PICTURES, r"DerivationImageSequence/: SharedFunctionalGroupsSequence/Item"),
    ("pixelmed", _OF_PICTURES, r"PatientOrientation: Incorrect value multiplicity - got 2 but expected 1-1"),
)
"""Limits of tools that their own list does not know: the tool, how the names of the objects begin, what it says."""
_LABEL_MAP, _SEGMENTATION = b"1.2.840.10008.5.1.4.1.1.66.7", b"1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(frozen=True, repr=False)
class Case:
    """The objects of a result as files in a folder of their own, and the images that they are of in another."""

    name: str
    folder: Path
    request: EncodingRequest
    objects: dict[Path, EncodedObject]

    @property
    def source(self) -> Path:
        """The folder of the images."""
        return self.folder / "source"


@dataclass
class Verdict:
    """What a tool has to say of an object: its messages by level; `known` are limits of the tool."""

    text: str
    error: list[str] = field(default_factory=list)
    warning: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


def written(name: str, request: EncodingRequest, folder: Path, editions: tuple[Edition, ...] | None = None) -> Case:
    """Encode a request into a folder; `name` makes its objects others than those of any other case."""
    asked = replace(request, configuration=name, editions=editions or request.editions)
    case = Case(name, folder, asked, {})
    case.source.mkdir(parents=True)
    for number, path in enumerate(asked.sources):
        shutil.copy(path, case.source / f"{number:04d}.dcm")
    for encoded in encode(asked):
        # All tools name their messages after the file alone.
        file = folder / (re.sub("[ /]", "_", f"{encoded.name} of {name}") + ".dcm")
        file.write_bytes(encoded.content)
        case.objects[file] = encoded
    return case


@dataclass(repr=False)
class Validators:
    """The installed tools; `said` is what they have said so far, by file and tool."""

    script: Path
    scratch: Path
    said: dict[Path, dict[str, Verdict]] = field(default_factory=dict)

    @cached_property
    def known(self) -> list[tuple[str, str]]:
        """Tool and pattern of the messages that the validators count apart."""
        tree = ast.parse((self._tools / "validate.py").read_text())
        (value,) = (
            each.value
            for each in tree.body
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and each.targets[0].id == "KNOWN"
        )
        return list(ast.literal_eval(value))

    def look_at(self, cases: Sequence[Case]) -> None:
        """Have every tool look at every object."""
        kinds = {file: encoded for case in cases for file, encoded in case.objects.items()}
        with tempfile.TemporaryFile("w+") as log, self._pixelmed(list(kinds), log):
            self._look_alone(kinds)
            self._read_like_ohif(cases)
            self._store(kinds)
            for case in cases:
                self._hold_together(case)
        for file, encoded in kinds.items():
            text = (self.scratch / f"{file.name}.pixelmed.txt").read_text()
            if "IOD (SOP Class) unrecognized" not in text:
                self._record(file, encoded, "pixelmed", text)

    @property
    def _tools(self) -> Path:
        return self.script.parent / "tools"

    def _program(self, name: str) -> str:
        """The program itself, not the Python that the package starts it with."""
        return str(next((self.script.parent / "venv").glob(f"lib/*/site-packages/*/bin/{name}")))

    def _record(self, file: Path, encoded: EncodedObject, tool: str, text: str, status: int = 0) -> None:
        verdict = Verdict(text)
        limits = [
            *(pattern for name, pattern in self.known if name == tool),
            *(
                pattern
                for name, begin, pattern in _LIMITS
                if name == tool and re.match(begin.replace(" ", "_"), file.name)
            ),
        ]
        explained = False
        for line in text.splitlines():
            level = next((level for level, pattern in _LEVELS.items() if pattern.match(line)), None)
            if level is not None:
                limited = any(re.search(pattern, line) for pattern in limits)
                explained |= level == "error"
                getattr(verdict, "known" if limited else level).append(line.strip())
        if status and not explained:
            verdict.error.append(f"exit status {status}")
        self.said.setdefault(file, {})[tool] = verdict

    @contextmanager
    def _pixelmed(self, files: Sequence[Path], log: object) -> Iterator[None]:
        """PixelMed reads its rules for 10 s: once for all, while the others look."""
        limits = [f"-Djdk.xml.xpath{each}Limit=0" for each in ("ExprOp", "TotalOp", "ExprGrp")]
        memory = ["-Xmx3g", "-Xms2g", "-Xmn1500m"]  # it fills a small heap all the time
        java = ["java", *limits, "-Dfile.encoding=UTF-8", *memory, "-XX:+UseSerialGC", "-cp", str(PIXELMED)]
        command = [*java, str(self._tools / "PxValidate.java"), str(self.scratch), *map(str, files)]
        process = subprocess.Popen(command, stdout=log, stderr=log)  # type: ignore[call-overload]
        try:
            yield
            assert process.wait(3000) == 0, log.seek(0) or log.read()  # type: ignore[attr-defined]
        finally:
            process.kill()
            process.wait()

    def _look_alone(self, kinds: dict[Path, EncodedObject]) -> None:
        for file, encoded in kinds.items():
            name, kind = str(file), ObjectKind(encoded.kind)
            report = kind in (ObjectKind.SR, ObjectKind.KO)
            if report and _LABEL_MAP in encoded.content:
                # DCMTK 3.6.7 and dciodvfy stop at a reference to a Label Map Segmentation, which is newer than they
                # are (PS3.4 B.5, Supplement 243): they see it as one to a Segmentation, which must be right, too.
                name = str(self.scratch / file.name)
                Path(name).write_bytes(encoded.content.replace(_LABEL_MAP, _SEGMENTATION))
            status, text = _run(self._program("dciodvfy"), "-new", name)
            self._record(file, encoded, "dciodvfy", text, min(status, 0))
            parts = (
                (["dsrdump", "+Pc", name], ["dsr2xml", "+Xs", name, "/dev/null"], ["dsr2html", name, "/dev/null"])
                if report
                else (["dcm2xml", name, "/dev/null"], ["dcmdump", "-q", name])
            )
            answers = [_run(*part) for part in parts]
            lines = [line for _, text in answers for line in text.splitlines() if re.match("[EWF]:", line)]
            self._record(file, encoded, "dcmtk", "\n".join(lines), max(status for status, _ in answers))
            if kind is ObjectKind.PR:
                status, text = _run("dcmpschk", name)
                self._record(file, encoded, "dcmpschk", text, status)
            status, text = _run("gdcmdump", name)
            lines = [line for line in text.splitlines() if re.match("Error|Warning", line)]
            self._record(file, encoded, "gdcm", "\n".join(lines), status)
            self._read_like_slicer(file, encoded, kind)

    def _read_like_slicer(self, file: Path, encoded: EncodedObject, kind: ObjectKind) -> None:
        programs = {
            ObjectKind.SR: "tid1500reader",
            ObjectKind.SEG: "segimage2itkimage",
            ObjectKind.PROBABILITY: "segimage2itkimage",
            ObjectKind.PM: "paramap2itkimage",
        }
        if kind not in programs:
            return
        with tempfile.TemporaryDirectory() as folder:
            out = ["--outputMetadata", f"{folder}/x.json"] if kind is ObjectKind.SR else ["--outputDirectory", folder]
            status, text = _run(self._program(programs[kind]), "--inputDICOM", str(file), *out)
            written = {each.name for each in Path(folder).iterdir()} - {"meta.json"}
        self._record(file, encoded, "dcmqi", text + ("" if written else "\nError: nothing was written"), status)

    def _read_like_ohif(self, cases: Sequence[Case]) -> None:
        asked = "".join(json.dumps([str(file), str(case.source)]) + "\n" for case in cases for file in case.objects)
        reader = Path(__file__).with_name("ohif_read_all.mjs")
        command = ["node", str(reader), str(self._tools / "ohif_read.mjs")]
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
        answers = dict(map(json.loads, done.stdout.splitlines()))
        for case in cases:
            for file, encoded in case.objects.items():
                self._record(file, encoded, "ohif", answers[str(file)])

    def _store(self, kinds: dict[Path, EncodedObject]) -> None:
        plugin = ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"]
        with orthanc(self.scratch / "orthanc", Plugins=plugin) as archive:
            self._send("orthanc", kinds, "dimse", "localhost", str(archive.dicom), "ORTHANC")
            self._send("stow", kinds, "stow", f"http://localhost:{archive.http}/dicom-web/studies")
        folder, port = self.scratch / "dcmqrscp", free_port()
        folder.mkdir()
        settings = self.scratch / "dcmqrscp.cfg"
        settings.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\nHostTable END\n"
            f"VendorTable BEGIN\nVendorTable END\nAETable BEGIN\nDB {folder} RW (500, 1024mb) ANY\nAETable END\n"
        )
        # What is compressed, is so with RLE.
        process = subprocess.Popen(["dcmqrscp", "-q", "+xr", "-c", str(settings)])
        try:
            wait_until(lambda: not _run("echoscu", "-aec", "DB", "localhost", str(port))[0], what="dcmqrscp to answer")
            self._send("dcmqrscp", kinds, "dimse", "localhost", str(port), "DB")
        finally:
            process.terminate()
            process.wait()

    def _send(self, tool: str, kinds: dict[Path, EncodedObject], *how: str) -> None:
        python = str(self.script.parent / "venv/bin/python")
        done = subprocess.run(
            [python, str(self._tools / "store.py"), *how, *map(str, kinds)], capture_output=True, text=True, check=True
        )
        lines = done.stdout.splitlines()
        assert len(lines) == len(kinds), done.stderr
        for line, (file, encoded) in zip(lines, kinds.items(), strict=True):
            assert str(file) in line
            self._record(file, encoded, tool, line)

    def _hold_together(self, case: Case) -> None:
        """What a study says in one place and in another: it compares bytes, so the images have to be in UTF-8, too."""
        images = self.scratch / f"images of {case.name}"
        images.mkdir()
        for path in case.source.iterdir():
            copy = images / path.name
            if _run("dcmconv", "+U8", str(path), str(copy))[0]:  # glibc does not know ISO 2022 IR 87
                dataset = dcmread(path)
                dataset.decode()
                dataset.SpecificCharacterSet = "ISO_IR 192"
                dataset.save_as(copy)
        _, text = _run(self._program("dcentvfy"), *map(str, case.objects), *map(str, images.iterdir()))
        lines = text.splitlines()
        for file, encoded in case.objects.items():
            self._record(file, encoded, "dcentvfy", "\n".join(line for line in lines if f"<{file}>" in line))


def _run(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False)
    return done.returncode, done.stdout.decode(errors="replace")
