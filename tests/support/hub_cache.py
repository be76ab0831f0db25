"""Models in the Hub's cache, laid out as huggingface_hub does, without a Hub."""

import hashlib
import shutil
from pathlib import Path

from huggingface_hub import constants


def put_into_cache(name: str, folder: str) -> Path:
    """Store the files of a folder as the newest revision of a model on the Hub; return its folder in the cache."""
    home = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    files = {file.name: file for file in sorted(Path(folder).iterdir())}
    ids = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    revision = hashlib.sha1(str(ids).encode()).hexdigest()
    snapshot = home / "snapshots" / revision
    for part in (home / "blobs", snapshot, home / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        shutil.copyfile(file, home / "blobs" / ids[name])
        (snapshot / name).symlink_to(Path("../../blobs", ids[name]))
    (home / "refs" / "main").write_text(revision)
    return snapshot
