"""Damage to the files of a checkpoint, as disks, copies and people cause it."""

import random
from collections.abc import Iterator
from pathlib import Path

KINDS = ("flipped bit", "cut off", "deleted", "zeroed block", "longer")


def trials(checkpoint: Path, count: int, seed: int = 0) -> Iterator[tuple[Path, str, random.Random]]:
    """Yield (file, kind of damage, random generator for it): every file in turn, with every kind for each of them."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
    pairs = [(file, kind) for kind in KINDS for file in files]
    for number in range(count):
        file, kind = pairs[number % len(pairs)]
        yield file, kind, random.Random(seed * 1_000_003 + number)


def damage(file: Path, kind: str, draw: random.Random) -> None:
    """Damage a file; the damaged one always differs from the original."""
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content))
    if kind == "deleted":
        file.unlink()
        return
    if kind == "flipped bit":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "cut off":
        del content[at:]
    elif kind == "longer":
        content += bytes([draw.randrange(256)])
    else:
        end = at + draw.randrange(1, 65)
        same = not any(content[at:end])
        content[at:end] = (b"\xff" if same else b"\0") * len(content[at:end])
    file.write_bytes(content)
