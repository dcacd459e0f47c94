"""What a container allows, from files as Linux writes them in each version and each kind of container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leveret import container
from leveret.cli import main
from leveret.forked import usable_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine of 64 cores: call it with the groups of this process and the files below the mount."""
    monkeypatch.setattr(container, "MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr(container, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that it is put back whatever a test does
    monkeypatch.delenv("OMP_NUM_THREADS")

    def build(groups: str, **files: str) -> None:
        (tmp_path / "groups").write_text(groups)
        for name, content in files.items():
            place = tmp_path / "cgroup" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)

    return build


V1 = "5:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        ("0::/\n", {}, 64, None),
        ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, 64, None),
        ("0::/\n", {"cpu.max": "200000 100000\n", "memory.max": "8589934592\n"}, 2, 2**33),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/memory.max": "77"}, 2, 77),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1, None),
        ("0::/\n", {"cpu.max": "99900000 100000"}, 64, None),
        ("0::/\n", {"cpu.max": "many", "memory.max": "-"}, 64, None),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "300000", "cpu/docker/abc/cpu.cfs_period_us": "100000",
              "memory/docker/abc/memory.limit_in_bytes": "1000"}, 3, 1000),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000",
              "memory/memory.limit_in_bytes": "9223372036854771712"}, 64, None),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000",
              "memory/memory.limit_in_bytes": "4096"}, 2, 4096),  # the container sees its own group as the root
    ],
)  # fmt: skip
def test_the_least_share_above_counts(
    machine, groups: str, files: dict[str, str], cores: int, memory: int | None
) -> None:
    machine(groups, **files)
    assert (container.allowed_cores(), container.memory_limit()) == (cores, memory)
    assert container.visible_cores() == 64 and usable_cores() == cores


def test_without_control_groups_every_core_counts(machine) -> None:
    assert (container.allowed_cores(), container.memory_limit()) == (64, None)


@pytest.mark.parametrize(
    ("command", "files", "said", "threads"),
    [
        ("run", {"cpu.max": "200000 100000"}, None, "2"),
        ("run", {"cpu.max": "200000 100000"}, "7", "7"),
        ("launch", {"cpu.max": "200000 100000"}, None, None),
        ("run", {"cpu.max": "max 100000"}, None, None),
    ],
)
def test_a_command_begins_as_many_threads(
    machine, monkeypatch: pytest.MonkeyPatch, command: str, files: dict[str, str], said: str | None, threads: str | None
) -> None:
    machine("0::/\n", **files)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    main.main([command, "--help"])
    assert os.environ.get("OMP_NUM_THREADS") == threads
