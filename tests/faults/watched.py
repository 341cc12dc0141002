"""A listener that is watched while others try to break it."""

from dataclasses import dataclass
from pathlib import Path

from running import Home, Role, data_set_of, wait_until


@dataclass(frozen=True)
class Watched:
    """A listener in a process of its own, and what it takes of the machine."""

    home: Home
    role: Role
    port: int

    def stored(self, sop_instance_uid: str) -> list[bytes]:
        """Return the data sets that are kept under this UID, by way of the index."""
        files = self.home.files()
        rows = [row for row in self.home.instances() if row.sop_instance_uid == sop_instance_uid]
        return [data_set_of(files[row.sha256]) for row in rows]

    def status(self, line: str) -> int:
        """Return a number of the process's status file, such as `Threads` or `VmRSS` (kB)."""
        status = Path(f"/proc/{self.role.process.pid}/status").read_text()
        return next(int(each.split()[1]) for each in status.splitlines() if each.startswith(f"{line}:"))

    def cpu_seconds(self) -> float:
        """Return how much of a core the process has had."""
        fields = Path(f"/proc/{self.role.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.role.process.pid}/fd").iterdir()))

    def assert_quiet(self) -> None:
        """Assert that nothing surprised the listener, and that what its peers opened is closed."""
        log = self.role.log_text()
        assert "Traceback" not in log
        # What a library says of hostile bytes is no surprise.
        surprises = [line for line in log.splitlines() if '"exception"' in line and '"logger": "meddaemon' in line]
        assert surprises == []
        wait_until(lambda: self.status("Threads") < 12, what="the threads of ended associations to end", every=0.1)
        wait_until(lambda: not self.home.half_received(), what="half received files to go", every=0.1)
