"""The faults that we promise to stand, each with what we do about it, and which tests show it.

A test shows a fault when it carries `@pytest.mark.fault(number, ...)`. `python tests/faults/catalogue.py` prints the
table.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """One fault: what happens to us, and what we do."""

    title: str
    answer: str


FAULTS: dict[int, Fault] = {
    # Network and association.
    1: Fault(
        "connections that only probe the port", "cost neither thread nor place; the next caller is served at once"
    ),
    2: Fault("a peer that connects and is silent", "ended at the deadline of the request"),
    3: Fault("a peer that stops within the first header", "ended at the deadline of the request"),
    4: Fault("a peer that stops within its request", "ended at the deadline of the request"),
    5: Fault("a request that comes byte by byte", "ended at the same deadline, which no byte puts off"),
    6: Fault("one silent peer beside others", "the others are served within 3 s"),
    7: Fault("thirty and more half-open peers", "the others are served; they have a budget of their own"),
    8: Fault("half-open peers that never hang up", "their places come back by themselves"),
    9: Fault("many more associations than may be", "the surplus is rejected within a second (2, 3, 2)"),
    10: Fault("an association that says nothing", "aborted at the idle timer, by the monotonic clock"),
    11: Fault(
        "hundreds of associations one after the other", "threads, descriptors and memory back to where they were"
    ),
    12: Fault("another protocol on our port", "A-ABORT and an end within a second"),
    13: Fault("a request of 4 GiB", "refused by its length field"),
    14: Fault("a P-DATA PDU of 2 GiB", "refused: longer than negotiated"),
    15: Fault("another protocol version or application context", "A-ASSOCIATE-RJ with the reason"),
    16: Fault("a request that proposes nothing", "rejected or aborted, never left waiting"),
    17: Fault("context ids that are even, repeated, or 128 of them", "answered"),
    18: Fault("AE titles of odd characters", "answered, and escaped wherever they are shown"),
    19: Fault("a huge user identity, or no user information", "answered"),
    20: Fault("items that are longer than their PDU", "A-ABORT"),
    21: Fault("a peer that takes PDUs of a few bytes", "answered or refused, and no spinning"),
    22: Fault("PDUs that the state does not allow", "A-ABORT (PS3.8 table 9-10)"),
    23: Fault("a peer that does not read", "suffers alone"),
    24: Fault("a transfer that stops within a PDU", "the others are served within 3 s"),
    25: Fault("mutated association requests", "no crash, served at once afterwards"),
    26: Fault("idle associations", "cost less than 5 % of a core"),
    27: Fault("TLS: a peer that stops within the handshake", "the others are served"),
    28: Fault("TLS: no certificate, an old version, no TLS at all", "refused"),
    29: Fault("TLS: our certificate expires or is replaced", "reloaded without an association dropped; told ahead"),
    30: Fault("a caller that is not on the list", "rejected with the reason, and told"),
    31: Fault("a port that somebody has", "the listener ends with a line and is not 0"),
    # DIMSE.
    32: Fault("presentation data values of impossible lengths", "A-ABORT"),
    33: Fault("a context id that was not accepted", "A-ABORT"),
    34: Fault("a command set that is none", "A-ABORT"),
    35: Fault("a command that the context does not have", "0211, or A-ABORT where nobody knows it"),
    36: Fault("a C-STORE request that lacks something", "a failure status or A-ABORT"),
    37: Fault("a request without its data set, a data set without its request", "a failure status or A-ABORT"),
    38: Fault("a SOP class that is not the context's", "0122"),
    39: Fault("fragments of two bytes", "taken; linear in their number"),
    40: Fault("the end of a connection within an object", "no object, no file, no thread stays"),
    41: Fault("a peer that stops between or within PDUs of an object", "ended by a timer; no file stays"),
    42: Fault("a PDU a little longer than negotiated", "taken or A-ABORT, bounded"),
    43: Fault("requests without waiting for answers", "all answered, in order"),
    44: Fault("a flood of C-CANCEL", "ignored, bounded"),
    45: Fault("a command set without end", "cut at 64 KiB"),
    46: Fault("a huge object that is aborted", "bounded memory, and no file stays"),
    47: Fault("mutated messages", "no crash"),
    # Data sets.
    48: Fault("a data set that is cut", "C000"),
    49: Fault("no data set, or random bytes", "C000 within a second"),
    50: Fault("lengths that cannot be", "C000"),
    51: Fault("sequences nested as deep as a report may", "taken"),
    52: Fault("sequences nested thousands deep", "C000, at once"),
    53: Fault("very many elements, items or values", "taken or C000, in linear time"),
    54: Fault("a VR that nobody knows", "kept bit for bit"),
    55: Fault("elements out of order or repeated", "C000"),
    56: Fault("another encoding than negotiated", "C000"),
    57: Fault("command or file meta elements in a data set", "C000"),
    58: Fault("a character set that nobody knows, bytes that are no text", "kept bit for bit, shown with replacements"),
    59: Fault(
        "control characters, markup and SQL in texts", "kept bit for bit; one line in the log, escaped when shown"
    ),
    60: Fault("a name of 60 kB", "kept bit for bit; the index keeps as much as it may"),
    61: Fault("numbers and dates that are none", "kept bit for bit; the worker refuses them with a reason"),
    62: Fault("a patient that is not named", "kept; held or let through, as the settings say"),
    63: Fault("no Study or Series UID, no SOP UIDs", "A900 or C000"),
    64: Fault("bytes after the end, odd lengths", "C000 for the first; the second are kept as they are"),
    65: Fault("a deflate bomb, a damaged or absent deflate stream", "C000, with bounded memory"),
    66: Fault("mutated data sets", "no crash, nothing acknowledged that is not kept"),
    67: Fault("an executable before the DICOM prefix", "the preamble becomes zero, and that is told"),
    68: Fault("a DICOMDIR or archive that points elsewhere", "nothing outside is read or written"),
    # Identity.
    69: Fault("paths as a UID", "0117, nothing outside the store"),
    70: Fault("control characters, overlong and empty UIDs", "0117"),
    71: Fault("options, shell and SQL as a UID", "0117"),
    72: Fault("paths as Study or Series UID or Patient ID", "0117 or A900 for UIDs; never in a path"),
    73: Fault("UIDs with leading zeros or padding", "taken, compared without the padding, kept as sent"),
    74: Fault("a data set of another UID or class than its command", "A900, nothing kept"),
    75: Fault("the same object again", "0000, kept once, nothing done again"),
    76: Fault("another object under the same UID", "both kept, and the conflict told"),
    77: Fault("eight senders of one UID at once", "whole objects only"),
    78: Fault("a UID of another patient or study", "refused with an alarm, and set aside"),
    79: Fault("an image after the study was processed", "processed again once; the old result is superseded"),
    80: Fault("one study from two senders at once", "one study; both senders recorded"),
    81: Fault("other demographics within a study", "the study is held until somebody has looked"),
    82: Fault("a study of which the rest never comes", "closed after its quiet time; rules see how much there is"),
    # Geometry and meaning of a series.
    83: Fault(
        "a gap, a repeated or shifted plane, planes in any order",
        "refused with the reason, or by contract dropped or interpolated for the model; order does not matter",
    ),
    84: Fault(
        "several orientations or a localizer in a series",
        "never one volume; by contract the largest, what is left out is named",
    ),
    85: Fault("gantry tilt, pixels that are not square", "the true affine, or refused"),
    86: Fault("no or zero spacing", "refused with the reason, never assumed"),
    87: Fault(
        "rescale that differs by plane, inverse grey",
        "applied plane by plane; inverse grey is refused in a volume and turned round in a picture",
    ),
    88: Fault(
        "signed and unsigned, stray bits, padding",
        "decoded by the header of each plane; contradictions refused; padding by contract replaced and counted",
    ),
    89: Fault("enhanced and classic forms of one volume", "the same voxels"),
    90: Fault("left and right, another frame of reference", "results lie where the images say; mixtures refused"),
    91: Fault(
        "another body part or modality, too few planes",
        "not sent to the model, or not evaluable by its limits, and why is told",
    ),
    92: Fault("a series over time", "refused with the reason, or by contract the first or last time, whole"),
    # Pixel data.
    93: Fault("pixel data that are absent, empty or short", "kept bit for bit; the job is refused with the instance"),
    94: Fault("claims of gigabytes, frames that are no number", "refused; nothing is allocated on a header's word"),
    95: Fault("attributes of another VR, 7 bits allocated", "kept; refused by the loader with the name"),
    96: Fault("a code stream that is cut, no fragments, a wrong offset table", "kept; refused with the frame"),
    97: Fault("a form of pixel data that contradicts the transfer syntax", "C000; the loader refuses it too"),
    98: Fault("bombs: RLE, JPEG 2000, JPEG, deflate", "refused in seconds, within the memory of the file"),
    99: Fault("a decoder that crashes or runs away", "its process ends, the job is refused and names the instance"),
    100: Fault("a decoder that is wrong without a word", "twins and a second decoder for every transfer syntax"),
    # Storage.
    101: Fault("a full disk", "A700, nothing torn, goes on without a restart"),
    102: Fault("no inodes", "A700, goes on"),
    103: Fault("a store that can only be read", "A700, told, goes on"),
    104: Fault("a volume that vanishes", "A700, nothing written in its place"),
    105: Fault("fsync that fails", "never acknowledged"),
    106: Fault("a write or rename that fails", "A700, no file stays"),
    107: Fault("no descriptors", "nobody is accepted for a while, then everybody"),
    108: Fault("a slow disk", "senders wait, nobody is cut off"),
    109: Fault("bit rot", "found by its hash, set aside, told"),
    110: Fault("an operator removes a file", "the job fails with the reason; the index says missing"),
    111: Fault("one sender over its quota", "A700 for that one only"),
    112: Fault("power lost at any moment", "file, name, row and answer become durable in this order"),
    # Database.
    113: Fault("a database that is locked", "waited for, then A700"),
    114: Fault("a database that is full or fails at commit", "not acknowledged; recovered"),
    115: Fault("killed between file and row", "adopted at the next start"),
    116: Fault("killed between row and answer", "the same object again changes nothing"),
    117: Fault("a write-ahead log that is missing", "found at start; never an empty start"),
    118: Fault("a damaged index", "found at start; rebuilt from the objects"),
    119: Fault("a PostgreSQL that restarts", "tried again; nothing acknowledged is lost"),
    120: Fault("two daemons on one store", "the second refuses"),
    121: Fault("a migration that is killed", "the next start finishes or has undone it"),
    122: Fault("a schema that is newer than we are", "refuses to start, and says which"),
    123: Fault("clocks that differ", "leases go by the clock of the database"),
    124: Fault("a million instances", "queries stay quick"),
    # Processes and the queue.
    125: Fault("kill -9 while objects are received", "nothing that was acknowledged is lost, nothing torn is seen"),
    126: Fault("kill -9 at any stage of a job", "it runs again and has one result, which is delivered once"),
    127: Fault("SIGTERM within a transfer or a job", "finished or given back, and ended within 15 s"),
    128: Fault("SIGSTOP within a transfer", "goes on where it was; everything is stored"),
    129: Fault("the clock is set by hours", "no task waits for the time before, and none is done twice"),
    130: Fault(
        "memory that runs out in the host",
        "the model's process goes first; tried class by class, then alone; the job is tried again, not for ever",
    ),
    131: Fault(
        "a GPU without memory",
        "fewer windows, outputs in the host, class by class, alone, then the CPU by contract, which the result tells",
    ),
    132: Fault("a CUDA error that sticks", "the process ends and is replaced"),
    133: Fault("a model that hangs", "ended at its time limit, at a lost lease, or at the end of the drain"),
    134: Fault("a worker that loses its lease and lives", "its late result is refused by the fencing token"),
    135: Fault("a job that kills its worker each time", "so many attempts, then a dead letter; the others are done"),
    136: Fault("a role that dies again and again", "started after ever longer pauses; the others go on"),
    137: Fault("a window that closes", "what runs finishes; nothing begins, not even what was prepared"),
    138: Fault("a queue of ten thousand jobs", "fair, in order, and a claim reads a few rows"),
    139: Fault("two workers and one job", "one of them has it"),
    # Models.
    168: Fault("an archive that leads out of its folder: names, links, devices, bombs", "refused, nothing written"),
    169: Fault("a pickle in the weights that calls for more than tensors", "refused when it is added, by name"),
    170: Fault("weights that get past that look", "loaded weights-only in the model child, else no work"),
    171: Fault("a configuration that calls the system", "told before anything of it runs; it never runs unsandboxed"),
    172: Fault("weights or configuration that change", "no work, with the file named, until it is checked again"),
    173: Fault(
        "NaN, nothing or everything segmented, scores that are no probabilities, boxes that cannot be",
        "a result that is marked, with the reason, and never sent",
    ),
    174: Fault("a model that answers by chance", "seeded; a check that differs from run to run lets it not in"),
    175: Fault("a bundle that phones home or reads other studies", "no socket, no file but its own, no other process"),
    176: Fault("labels, scores or boxes that the contract does not name", "refused: what cannot be coded is not sent"),
}


def by_fault() -> dict[int, list[str]]:
    """Return the tests that say which fault they show, by its number."""
    found: dict[int, dict[str, None]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for name, numbers in _marked(ast.parse(path.read_text())):
            for number in numbers:
                found.setdefault(number, {})[f"{path.relative_to(TESTS)}::{name}"] = None
    return {number: list(names) for number, names in found.items()}


def _marked(module: ast.Module) -> Iterator[tuple[str, list[int]]]:
    """Yield the tests of a module with the numbers in their `fault` marks, those of single parameters included."""
    tables: dict[str, ast.AST] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            tables[node.targets[0].id] = node.value
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        decoration = [each for decorator in node.decorator_list for each in ast.walk(decorator)]
        for table in {each.id for each in decoration if isinstance(each, ast.Name)} & set(tables):
            decoration += ast.walk(tables[table])
        for call in decoration:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                yield node.name, [ast.literal_eval(argument) for argument in call.args]


def main() -> None:
    """Print every fault with what we do, and its tests."""
    tests = by_fault()
    for number, fault in FAULTS.items():
        print(f"{number:3} {fault.title}: {fault.answer}")
        for test in tests.get(number, ["(no test yet)"]):
            print(f"        {test}")


if __name__ == "__main__":
    main()
