"""Files are whole or not there."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leveret.errors import ConfigError
from leveret.paths import (
    atomic_directory,
    atomic_write,
    cache_dir,
    free_bytes,
    hash_tree,
    require_outside,
    sha256_file,
    sweep_drafts,
)


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep/a.txt"
    atomic_write(file, "old")

    def no_space(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        atomic_write(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_where_nothing_more_fits_the_error_names_the_file_or_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too large") as refused:
        atomic_write(tmp_path / "shard.npy", b"x" * 1000)
    assert refused.value.filename == str(tmp_path / "shard.npy")
    with pytest.raises(OSError, match="too large") as refused, atomic_directory(tmp_path / "m") as draft:
        (draft / "weights").write_bytes(b"x" * 1000)
    assert refused.value.filename == str(tmp_path / "m") and list(tmp_path.iterdir()) == []


def test_where_a_copy_does_not_fit_the_error_names_the_copy(tmp_path: Path) -> None:
    copied = OSError(28, "No space left on device", str(tmp_path / "read"))
    with pytest.raises(OSError, match="No space left") as refused, atomic_directory(tmp_path / "m") as draft:
        copied.filename2 = str(draft / "tokenizer.json")
        raise copied
    assert (refused.value.filename, refused.value.filename2) == (str(tmp_path / "m/tokenizer.json"), None)


def test_text_is_written_as_utf8_without_changing_line_ends(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "兔\r\n")
    assert (tmp_path / "a").read_bytes() == "兔\r\n".encode()


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as draft:
        (draft / "a").write_text("1")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model/a").read_text() == "1"
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "model") as draft:
        (draft / "a").write_text("2")
        raise RuntimeError
    assert (tmp_path / "model/a").read_text() == "1"
    with atomic_directory(tmp_path / "model") as draft:
        (draft / "b").write_text("3")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_directory_that_is_a_link_is_written_where_the_link_points(tmp_path: Path, is_there: bool) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk/model")
    if is_there:
        (tmp_path / "disk/model").mkdir()
        (tmp_path / "disk/model/old").touch()
    with atomic_directory(tmp_path / "model") as draft:
        (draft / "new").touch()
    assert (tmp_path / "model").is_symlink()
    assert [path.name for path in (tmp_path / "disk").rglob("*")] == ["model", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "model"]


def test_a_file_is_never_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ConfigError, match="model is a file"), atomic_directory(tmp_path / "model"):
        pass
    with pytest.raises(ConfigError, match="model is a file"):
        require_outside(tmp_path / "model")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_the_folder_in_which_one_works_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home/models").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home/models")
    for path in (".", "..", tmp_path / "home", tmp_path):
        with pytest.raises(ConfigError, match=r"would replace .* and all that is in it"), atomic_directory(path):
            pass
    monkeypatch.chdir(tmp_path)
    with atomic_directory("home/models") as draft:
        (draft / "new").touch()
    assert (tmp_path / "home/models/new").is_file()


def test_where_a_disk_is_mounted_a_folder_in_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(ConfigError, match="disk is mounted") as refused:
        require_outside(tmp_path)
    assert str(tmp_path / "model") in (refused.value.hint or "")


KILLED = """
import os, signal, sys
import leveret.paths
from leveret.paths import atomic_directory
path, moment = sys.argv[1:]
if moment == "between renames":
    real = os.replace
    def replace(source, target):
        real(source, target)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace
with atomic_directory(path) as draft:
    (draft / "a").write_text("new")
    if moment == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["while writing", "between renames"])
def test_a_process_killed_while_replacing_a_directory_loses_nothing(tmp_path: Path, moment: str) -> None:
    with atomic_directory(tmp_path / "model") as draft:
        (draft / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model"), moment])
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model/a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_draft_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as draft:
        with pytest.raises(FileExistsError), atomic_directory(tmp_path / "model"):
            pass
        assert draft.is_dir()


def test_a_tree_hash_sees_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/a").write_text("x")
    os.utime(tmp_path / "two/sub/a", (0, 0))
    before = hash_tree(tmp_path / "one")
    assert before == hash_tree(tmp_path / "two")
    (tmp_path / "two/sub/a").rename(tmp_path / "two/sub/b")
    assert before != hash_tree(tmp_path / "two")


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_free_bytes_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not/yet") > 0


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("LEVERET_CACHE", raising=False)
    assert cache_dir() == Path("/x/leveret")
    monkeypatch.setenv("LEVERET_CACHE", "/y")
    assert cache_dir() == Path("/y")


def test_drafts_of_killed_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from leveret.paths import atomic_write; os.fsync = lambda _: os._exit(9); "
        "atomic_write(sys.argv[1], 'x')"
    )
    for name in ("a.json", "deep/b.txt"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    host = socket.gethostname()
    host = re.sub(r"[^A-Za-z0-9]", "_", host)
    mine = tmp_path / f".c.json.{host}-{os.getpid()}"
    other = tmp_path / ".hidden-note"
    for path in (mine, other):
        path.write_text("keep")
    assert len([path for path in tmp_path.rglob(".*") if path.is_file()]) == 4
    sweep_drafts(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([mine, other])


def test_a_draft_of_an_earlier_process_with_my_number_is_no_longer_in_the_way(tmp_path: Path) -> None:
    """As in a container that was killed and started again: the same host name, the same process number."""
    host = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())
    draft, file = tmp_path / f".model.draft-{host}-{os.getpid()}", tmp_path / f".c.json.{host}-{os.getpid()}"
    (draft / "inner").mkdir(parents=True)
    file.write_text("half")
    for path in (draft, file):
        os.utime(path, (1e9, 1e9))  # long before this process began
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "a").write_text("whole")
    sweep_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_drafts_of_folders_are_swept_with_those_of_files(tmp_path: Path) -> None:
    code = "import os, sys; from leveret.paths import atomic_directory\nwith atomic_directory(sys.argv[1]): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "deep" / "model")], check=False)
    assert list((tmp_path / "deep").iterdir())
    sweep_drafts(tmp_path)
    assert not list((tmp_path / "deep").iterdir())
