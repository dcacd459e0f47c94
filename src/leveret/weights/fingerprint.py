"""A fingerprint of a model's weight files that takes milliseconds: names, shapes, and the first bytes of each tensor.

An adapter is worth something only on the model it was trained on, and a folder's name says little. Reading 16 GB for a
hash would take longer than loading; the first kilobyte of each tensor tells any two trainings apart. How tensors are
spread over files does not matter. It is no protection against someone who wants to deceive.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SAMPLE_BYTES = 1024


def fingerprint_of(folder: Path) -> str | None:
    """Of all safetensors files in a model folder; None where there are none."""
    entries: list[bytes] = []
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, end = entry["data_offsets"]
                file.seek(8 + header_bytes + start)
                sample = file.read(min(end - start, SAMPLE_BYTES))
                entries.append(f"{name} {entry['dtype']} {entry['shape']} ".encode() + sample)
    return (
        hashlib.sha256(b"".join(hashlib.sha256(entry).digest() for entry in sorted(entries))).hexdigest()
        if (entries)
        else None
    )
