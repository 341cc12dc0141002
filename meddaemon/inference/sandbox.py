"""What a process that runs foreign code may still do: compute, read what it needs, write its scratch folder.

Two things of the Linux kernel that need no privilege and no namespace, so that they work in a locked down systemd
unit and in a container: Landlock (landlock(7)) for files, a seccomp filter (seccomp(2)) for everything else. Once
confined, a process opens no socket, starts no program and no other process, sends no signal, and reads no file but
those named. Nothing lifts this again.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import meddaemon
from meddaemon.domain.errors import MeddaemonError

_ADVICE = 'models would run with less isolation; if that is what you want, set worker.sandbox = "preferred"'


class SandboxUnavailable(MeddaemonError):
    """The kernel does not offer what the sandbox is made of, or refused it."""


def missing() -> tuple[str, ...]:
    """Return what this kernel lacks for the sandbox; nothing when it is whole."""
    lacks = []
    if landlock_abi() < 1:
        lacks.append("Landlock")
    # A filter at no address: EFAULT from a kernel that would have read it.
    if (
        platform.machine() not in _ARCHITECTURES
        or _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, 0, 0, 0) == 0
        or ctypes.get_errno() != errno.EFAULT
    ):
        lacks.append("seccomp")
    return tuple(lacks)


def require() -> None:
    """Raise `SandboxUnavailable` when this kernel lacks anything for the sandbox."""
    if lacks := missing():
        raise SandboxUnavailable(f"this kernel has no {' and no '.join(lacks)}: {_ADVICE}")


def confine(read: Iterable[Path], write: Iterable[Path], *, required: bool = True) -> None:
    """Confine this process for good; it must have one thread only.

    `read` and everything below may be read, beside what Python and its libraries need; `write` may be changed too.
    Raises `SandboxUnavailable`; unless `required`, what the kernel lacks is left out.
    """
    if required:
        require()
    lacks = missing()
    _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if "Landlock" not in lacks:
        _restrict_files([*read, *runtime_paths()], list(write))
    _drop_capabilities()
    if "seccomp" not in lacks:
        _filter_system_calls()


def limit(*, data_bytes: int | None = None, file_bytes: int | None = None) -> None:
    """Bound what this process may ask for, for good: memory of its own, and the size of a file that it writes.

    Beyond the memory an allocation fails, beyond the size a write does. There are no core dumps: they hold images.
    """
    # Python ignores SIGXFSZ, so that a write beyond the bound is an OSError.
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
    ):
        if value is not None:
            before = resource.getrlimit(kind)[1]
            most = value if before == resource.RLIM_INFINITY else min(value, before)
            resource.setrlimit(kind, (most, most))


def runtime_paths() -> Iterator[Path]:
    """Yield what Python, its libraries and a GPU's driver read: code, and facts about the machine."""
    here = Path(meddaemon.__file__).resolve().parent
    yield here
    for text in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path):
        # The folder above our own package may be a checkout, with whatever lies there.
        if text and Path(text).resolve() != here.parent:
            yield Path(text)
    yield from (Path(text) for text in os.environ.get("LD_LIBRARY_PATH", "").split(":") if text)
    yield from map(Path, _SYSTEM)
    for folder, pattern in _PATTERNS:
        yield from Path(folder).glob(pattern)


_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/driver/nvidia"),
    *("/sys/devices/system", "/sys/fs/cgroup", "/sys/bus/pci", "/sys/module/nvidia", "/sys/kernel/mm"),
)
_PATTERNS = (("/sys/devices", "pci*"),)
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "nvidia-caps/*")


# --- Landlock: files ------------------------------------------------------------------------------------------------

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_EVERY_RIGHT = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _READ_FILE | _READ_DIR
_CHANGE = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER
_USE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def landlock_abi() -> int:
    """Return which version of Landlock the kernel speaks; 0 is none."""
    return max(0, int(_libc().syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def _restrict_files(read: Sequence[Path], write: Sequence[Path]) -> None:
    abi = landlock_abi()
    handled = _EVERY_RIGHT[min(abi, max(_EVERY_RIGHT))]
    attributes = [handled]
    if abi >= 4:
        attributes.append(_BIND_AND_CONNECT_TCP)
    if abi >= 6:
        attributes.append(_ABSTRACT_SOCKETS_AND_SIGNALS)
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    ruleset = _landlock(_LANDLOCK_CREATE_RULESET, packed, ctypes.c_size_t(len(packed)), ctypes.c_uint32(0))
    try:
        devices = [path for pattern in _DEVICES for path in Path("/dev").glob(pattern)]
        for paths, rights in ((read, _READ), (write, _CHANGE), (devices, _USE)):
            for path in dict.fromkeys(paths):
                _allow(ruleset, path, rights & handled)
        _landlock(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return  # nothing there that could be read
    try:
        if not os.path.isdir(path):  # noqa: PTH112  once for each file of a study
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        _landlock(_LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        if not str(path).startswith("/proc/"):
            # What /proc shows of a process is made anew when it was forgotten, and would then be another file than
            # the one allowed: one that is held open is not forgotten.
            os.close(descriptor)


def _landlock(number: int, *arguments: object) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        raise SandboxUnavailable(f"Landlock refused: {os.strerror(ctypes.get_errno())}")
    return result


# --- seccomp: system calls ------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_RETURN_ALLOW, _RETURN_ERRNO, _RETURN_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_CLONE_THREAD = 0x10000

# Numbers on x86_64 and on aarch64 (0: there is no such call).
_REFUSED: dict[str, tuple[int, int]] = {
    # No network, and no talk to the sockets of other programs; descriptors in hand still work.
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "bind": (49, 200), "listen": (50, 201),
    "accept4": (288, 242),
    # io_uring would do all this past the filter.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # No program, no process.
    "fork": (57, 0), "vfork": (58, 0), "execve": (59, 221), "execveat": (322, 281),
    # No hand on other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "tkill": (200, 130), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "setsid": (112, 157), "setpgid": (109, 154),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # What Landlock does not watch: other ways to change a file, and to hear of one.
    "chown": (92, 0), "fchown": (93, 55), "lchown": (94, 0), "fchownat": (260, 54), "truncate": (76, 45),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "inotify_init": (253, 0), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # The kernel itself.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170),
    "clock_settime": (227, 112),
}  # fmt: skip
# Modes and times are not changed either, but who copies a file must not fail over them: these do nothing.
_IGNORED: dict[str, tuple[int, int]] = {
    "chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, 0),
    "utimes": (235, 0), "futimesat": (261, 0), "utimensat": (280, 88),
}  # fmt: skip
_KILL, _TGKILL, _SIGQUEUE, _TGSIGQUEUE = (62, 129), (234, 131), (129, 138), (297, 240)
_SOCKETPAIR, _CLONE, _CLONE3, _PRCTL = (53, 199), (56, 220), (435, 435), (157, 167)


class _Step(NamedTuple):
    """One instruction of the filter (classic BPF): jump so many steps ahead when the test is true, or false."""

    code: int
    value: int
    when_true: int = 0
    when_false: int = 0


def _filter_system_calls() -> None:
    steps = _filter(platform.machine(), os.getpid())
    program = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", step.code, step.when_true, step.when_false, step.value) for step in steps)
    )
    head = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    if _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(head)), 0, 0) != 0:
        raise SandboxUnavailable(f"seccomp refused: {os.strerror(ctypes.get_errno())}")


def _filter(machine: str, pid: int) -> list[_Step]:
    """Return the filter of a process: everything is allowed but what stands above."""
    place = list(_ARCHITECTURES).index(machine)
    refuse = _Step(_RETURN, _RETURN_ERRNO | errno.EPERM)
    ignore = _Step(_RETURN, _RETURN_ERRNO)
    number = _Step(_LOAD, _NUMBER)
    steps = [
        _Step(_LOAD, _ARCHITECTURE),
        _Step(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _Step(_RETURN, _RETURN_KILL_PROCESS),
        number,
    ]
    if machine == "x86_64":
        steps += [_Step(_JUMP_AT_LEAST, _X32, 0, 1), refuse]
    for calls, answer in ((_REFUSED, refuse), (_IGNORED, ignore)):
        for numbers in calls.values():
            if numbers[place]:
                steps += [_Step(_JUMP_EQUAL, numbers[place], 0, 1), answer]
    # The C library falls back to clone, whose flags can be looked at.
    steps += [_Step(_JUMP_EQUAL, _CLONE3[place], 0, 1), _Step(_RETURN, _RETURN_ERRNO | errno.ENOSYS)]
    conditional: list[tuple[tuple[int, int], list[_Step]]] = [
        # A thread, not a process.
        (_CLONE, [_argument(0), _Step(_JUMP_SET, _CLONE_THREAD, 1, 0), refuse]),
        # Connected both ways for good: not one whose messages may be addressed to anybody.
        (_SOCKETPAIR, [_argument(1), _Step(_AND, 0xF), _Step(_JUMP_EQUAL, 1, 1, 0), refuse]),
        # It ends with its parent.
        (_PRCTL, [_argument(0), _Step(_JUMP_EQUAL, _PR_SET_PDEATHSIG, 0, 1), refuse]),
        # Signals only to itself.
        *(
            (call, [_argument(0), _Step(_JUMP_EQUAL, pid, 1, 0), refuse])
            for call in (_KILL, _TGKILL, _SIGQUEUE, _TGSIGQUEUE)
        ),
    ]
    for numbers, tests in conditional:
        steps += [_Step(_JUMP_EQUAL, numbers[place], 0, len(tests) + 1), *tests, number]
    return [*steps, _Step(_RETURN, _RETURN_ALLOW)]


def _argument(index: int) -> _Step:
    """Load the low half of an argument of the call."""
    return _Step(_LOAD, 16 + 8 * index)


# --- the rest -------------------------------------------------------------------------------------------------------


def _drop_capabilities() -> None:
    """Give up what root may do, where this is root; nobody else has anything to give up."""
    head = struct.pack("=Ii", 0x20080522, 0)
    if _libc().capset(head, bytes(24)) != 0:
        raise SandboxUnavailable(f"cannot give up capabilities: {os.strerror(ctypes.get_errno())}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
