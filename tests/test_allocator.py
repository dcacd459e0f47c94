"""The allocator's settings: fewer page faults inside the block, memory given back after it."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from leveret.allocator import keep_freed_memory, reuse_freed_blocks
from leveret.console import Console


def faults_of_big_temporaries(mebi=40):  # above every threshold of malloc
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(mebi * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes():
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc's malloc")
def test_big_temporaries_do_not_fault_again_and_again():
    usual = faults_of_big_temporaries()
    with keep_freed_memory(Console(quiet=True)) as kept:
        assert kept
        faults_of_big_temporaries()
        inside = faults_of_big_temporaries()
        held = resident_bytes()
    assert inside < usual / 5
    assert resident_bytes() < held - 30 * 2**20, "the block's memory was not given back"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc's malloc")
def test_blocks_of_a_usual_size_are_reused_from_the_first_engine_on():
    reuse_freed_blocks()
    faults_of_big_temporaries(mebi=24)
    assert faults_of_big_temporaries(mebi=24) < 10 * 24 * 256 / 5
    with keep_freed_memory(Console(quiet=True)):
        reuse_freed_blocks()  # an engine that is made while training
        faults_of_big_temporaries()
        assert faults_of_big_temporaries() < 10 * 40 * 256 / 5, "the engine has undone the trainer's setting"
