"""Decodes seeded mutations of files, in a process of its own: `python mutated_pixels.py COUNT SEED FILE...`.

Prints what came of them; ends with 1 at the first error without a name. Nothing of a mutated file may cost more
memory than this process may have.
"""

import random
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

from meddaemon.domain.errors import InputRefused
from meddaemon.inference.volume import read_layout, stored_frames


def mutated(content: bytes, begin: int, chance: random.Random) -> bytes:
    """Return the file with some bytes from `begin` on changed, left out, doubled or cut off."""
    changed = bytearray(content)
    # Markers and tables stand at the begin of a stream: half of the mutations are there.
    end = len(changed) if chance.random() < 0.5 else min(len(changed), begin + 200)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(begin, end)
        how = chance.randrange(6)
        if how < 3:
            changed[at : at + 1] = bytes([chance.choice((0, 0xFF, 0x80, chance.randrange(256)))])
        elif how == 3:
            del changed[at : at + chance.randint(1, 64)]
        elif how == 4:
            changed[at:at] = changed[at : at + chance.randint(1, 64)]
        elif chance.random() < 0.3:
            del changed[max(at, begin) :]
        end = max(begin + 1, min(end, len(changed)))
        if len(changed) <= begin + 1:
            break
    return bytes(changed)


def main() -> int:
    count, seed, paths = int(sys.argv[1]), int(sys.argv[2]), [Path(each) for each in sys.argv[3:]]
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "mutated"
        for path in paths:
            content = path.read_bytes()
            value = read_layout(path).value
            assert value is not None
            for number in range(count):
                chance = random.Random(f"{seed} {path.name} {number}")
                target.write_bytes(mutated(content, value.position, chance))
                sys.stderr.write(f"\r{path.name} {number}")
                try:
                    for _ in stored_frames(read_layout(target)):
                        pass
                except InputRefused as refused:
                    outcomes[refused.reason if refused.sop_instance_uid else "nameless"] += 1
                else:
                    outcomes["decoded"] += 1
    sys.stdout.write(" ".join(f"{reason}={times}" for reason, times in sorted(outcomes.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
