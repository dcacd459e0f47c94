"""Files that are either whole or not there: atomic writes, content hashes, the cache folder.

A process can be killed between any two instructions. So nothing is written under its final name: a file or a
folder is written beside its place under a hidden name, flushed to the disk (`fsync`), and then renamed, which
the file system does at once or not at all. Whoever finds the final name finds the whole thing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from leveret.errors import ConfigError


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8, parents made) so that a reader sees the old content or the new, never half.

    An OSError names the file, also where the system names none (a disk that is full).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{_process_tag()}")
    try:
        with open(draft, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        _name_place(error, path, draft)
        raise
    _sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends well it becomes `path`, when it fails it is removed.

    An existing `path` is replaced; where it is a link, the folder that it names is, and the link stays. ConfigError
    where no folder can be put. Leftovers of processes killed in this block are removed by the next call.
    """
    path = Path(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    _require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_leftovers(path)
    draft = path.with_name(f".{path.name}.draft-{_process_tag()}")
    draft.mkdir()
    try:
        yield draft
        _sync_tree(draft)
        _replace_directory(path, draft)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        _name_place(error, path, draft)
        raise


def permit_as_new(path: Path) -> None:
    """Give a file the permissions that a new file gets here; some libraries write theirs for the owner alone."""
    probe = path.with_name(f".{path.name}.{_process_tag()}")  # to ask for the umask is to change it, for all threads
    probe.touch()
    try:
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink()


def require_outside(output: str | Path, *read: Path) -> None:
    """ConfigError if a folder that is written, and replaces what is there, would take away one of those it is made of.

    The same where no folder can be put. Ask before the work begins: when the folder appears, what it was made of is
    gone.
    """
    _require_replaceable(Path(output))
    for path in read:
        if path.resolve().is_relative_to(Path(output).resolve()):
            raise ConfigError(f"output {output} would replace {path}, which is read", hint="choose another folder")


def sweep_drafts(directory: str | Path) -> None:
    """Remove the drafts below a folder that processes of this machine left behind when they were killed."""
    pattern = re.compile(r"\..+\.(draft-)?" + re.escape(_host()) + r"-(\d+)")
    for leftover in list(Path(directory).rglob(".*")):
        found = pattern.fullmatch(leftover.name)
        if found is None or _is_alive(int(found[2]), since=leftover.stat().st_mtime):
            continue
        if found[1]:
            shutil.rmtree(leftover, ignore_errors=True)
        elif leftover.is_file():
            leftover.unlink(missing_ok=True)


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(directory: str | Path, *, without: Collection[Path] = ()) -> str:
    """One SHA-256 for the names and contents of all files below a folder; times and permissions do not count, nor do
    the files `without`."""
    digest = hashlib.sha256()
    left_out = {file.absolute() for file in without}
    for file in files_below(directory):
        if file.absolute() in left_out:
            continue
        digest.update(f"{sha256_file(file)} {file.relative_to(directory).as_posix()}\n".encode())
    return digest.hexdigest()


def files_below(directory: str | Path) -> list[Path]:
    """All files below a folder, in one order on every machine."""
    directory = Path(directory)
    return sorted((file for file in directory.rglob("*") if file.is_file()), key=lambda file: file.as_posix())


def free_bytes(path: str | Path) -> int:
    """Free bytes on the disk that holds `path`, which need not exist yet."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def cache_dir() -> Path:
    """Where derived files that can be made again are kept: $LEVERET_CACHE, else $XDG_CACHE_HOME/leveret."""
    if chosen := os.environ.get("LEVERET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leveret"


def _require_replaceable(path: Path) -> None:
    """ConfigError if no folder may take the place of `path`: of a file, a mounted disk, or all that one works in."""
    if path.is_file():
        raise ConfigError(f"{path} is a file, and a folder is to be written there", hint="choose another place")
    if os.path.ismount(path):
        raise ConfigError(
            f"{path} is where a disk is mounted, so no new folder can take its place",
            hint=f"name a folder in it, such as {path / 'model'}",
        )
    for inhabited in (Path.cwd(), Path(os.path.expanduser("~"))):
        if inhabited.resolve().is_relative_to(path.resolve()):
            raise ConfigError(
                f"output {path} would replace {inhabited} and all that is in it",
                hint=f"name a folder: {path / 'model'}",
            )


def _name_place(error: BaseException, path: Path, draft: Path) -> None:
    """Let what the system refused name the place that people know: a disk that is full names none."""
    if not isinstance(error, OSError) or error.errno is None:
        return
    refused = error.filename if error.filename2 is None else error.filename2  # of a copy, what was to be written
    if refused is None:
        error.filename = str(path)
    elif Path(str(refused)).is_relative_to(draft):
        error.filename, error.filename2 = str(path / Path(str(refused)).relative_to(draft)), None


def _process_tag() -> str:
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def _replace_directory(path: Path, draft: Path) -> None:
    """A folder cannot be renamed over a full one: the old one steps aside, and `_sweep_leftovers` mends a kill here."""
    if not path.exists():
        os.replace(draft, path)
    else:
        aside = path.with_name(f".{path.name}.aside-{_process_tag()}")
        os.replace(path, aside)
        os.replace(draft, path)
        shutil.rmtree(aside)
    _sync_directory(path.parent)


def _sweep_leftovers(path: Path) -> None:
    """Remove the drafts of dead processes of this machine; put back a folder that had stepped aside for one."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(draft|aside)-" + re.escape(_host()) + r"-(\d+)")
    for leftover in sorted(path.parent.iterdir()):
        found = pattern.fullmatch(leftover.name)
        if found is None or _is_alive(int(found[2]), since=leftover.stat().st_mtime):
            continue
        if found[1] == "aside" and not path.exists():
            os.replace(leftover, path)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int, *, since: float) -> bool:
    """Whether a process with this number runs, and did at the time `since`: a container that is started again gives
    its first process the number and the host name of the one that was killed."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    started = _start_time(process)
    return started is None or started <= since + 1.0  # /proc counts in hundredths, a file system perhaps in seconds


def _start_time(process: int) -> float | None:
    """When a process began, in seconds since 1970; None on systems that do not say."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        return float(boot.split()[1]) + int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _sync_tree(directory: Path) -> None:
    for file in files_below(directory):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    for folder in [*(entry for entry in directory.rglob("*") if entry.is_dir()), directory]:
        _sync_directory(folder)


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(PermissionError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
