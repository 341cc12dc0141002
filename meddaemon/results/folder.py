"""A folder as a destination: each object becomes a file, named by its UIDs and by nothing of a patient."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from meddaemon.domain.outlet import TransferForm
from meddaemon.durable import Staging, write_new
from meddaemon.results.transcoding import NotTranscoded, as_syntax, syntaxes_for
from meddaemon.results.transport import Answer, Outgoing, Still, Verdict

STAGING = ".meddaemon"
"""Below the folder, where files lie until they are whole."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Files go to `STUDY/SERIES/INSTANCE.dcm` below `directory`, which must be there: it may be a volume to mount.

    `transfer_forms` are the transfer syntaxes that it may be given, the preferred one first; none: as stored.
    """

    directory: Path
    transfer_forms: tuple[TransferForm, ...] = ()

    def store(self, objects: Sequence[Outgoing], *, still: Still) -> Iterator[Answer]:
        """Write objects; yield what became of each. A file of that name with other content is never replaced."""
        for outgoing in objects:
            if still(outgoing):
                verdict, reason = self._write(outgoing)
                yield Answer(outgoing=outgoing, verdict=verdict, status=None, reason=reason)

    def problem(self) -> str:
        """Return why nothing can be written there, "" where it can; nothing is written to find out."""
        try:
            if not self.directory.is_dir():
                return f"{self.directory} is not there: is its volume mounted?"
            if os.statvfs(self.directory).f_flag & os.ST_RDONLY:
                return f"{self.directory} is mounted read-only"
        except OSError as failure:
            # What is said of a volume whose server is gone.
            return f"{self.directory}: {failure.strerror}"
        if not os.access(self.directory, os.W_OK | os.X_OK):
            return f"user {os.geteuid()} may not write to {self.directory}"
        return ""

    def _write(self, outgoing: Outgoing) -> tuple[Verdict, str]:
        if problem := self.problem():
            return Verdict.TRY_AGAIN, problem
        stored = outgoing.transfer_syntax_uid
        syntaxes = syntaxes_for(stored, self.transfer_forms)
        if not syntaxes:
            verdict = Verdict.ANOTHER_FORM if outgoing.together else Verdict.HOLD
            return verdict, f"no transfer syntax that this destination may be given holds {UID(stored).name}"
        try:
            with as_syntax(outgoing.path, stored, syntaxes[0]) as path:
                content = path.read_bytes()
            header = dcmread(outgoing.path, specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
            target = self.directory / header.StudyInstanceUID / header.SeriesInstanceUID
            target /= f"{outgoing.sop_instance_uid}.dcm"
            was_there = target.exists()
            if was_there and target.read_bytes() != content:
                return Verdict.HOLD, f"{target} holds something else"
            staging = Staging(self.directory / STAGING)
            try:
                staging.sweep()
                self._make_folders(target)
                # Also of what is there: who wrote it may have died before it was durable, or readable.
                write_new(target, content, staging)
                if not target.stat().st_mode & stat.S_IRGRP:
                    target.chmod(0o640)
            finally:
                staging.close()
        except NotTranscoded as failure:
            return Verdict.HOLD, f"the stored object {failure}"
        except (OSError, InvalidDicomError, AttributeError) as failure:
            return Verdict.TRY_AGAIN, f"could not write: {failure if isinstance(failure, OSError) else 'no UIDs'}"
        return Verdict.TAKEN, "was there already" if was_there else ""

    def _make_folders(self, target: Path) -> None:
        """Make the folders of a study and a series: whoever may look into the folder may look into these."""
        mode = stat.S_IMODE(self.directory.stat().st_mode)
        for folder in (target.parent.parent, target.parent):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                folder.chmod(mode)
