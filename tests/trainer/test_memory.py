"""The allocator setting: fewer page faults inside the block, memory given back after it."""

import platform
import resource

import pytest
import torch

from leveret.console import Console
from leveret.trainer.memory import keep_freed_memory


def faults_of_big_temporaries():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10 * 2**20)  # 40 MB: above every threshold of malloc
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc's malloc")
def test_big_temporaries_do_not_fault_again_and_again():
    usual = faults_of_big_temporaries()
    with keep_freed_memory(Console(quiet=True)) as kept:
        assert kept
        faults_of_big_temporaries()
        inside = faults_of_big_temporaries()
    assert inside < usual / 5
    assert faults_of_big_temporaries() > usual / 2
