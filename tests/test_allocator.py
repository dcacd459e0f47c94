"""The allocator's settings, each in a process of its own: fewer page faults, and memory given back after the block."""

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are of glibc's malloc")

PROGRAM = """
import json, resource
from pathlib import Path
import torch
from leveret.allocator import keep_freed_memory, reuse_freed_blocks
from leveret.console import Console

def faults(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(mebibytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_bytes():
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()

found = {}
"""


def measured(lines):
    """What the lines put into `found`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}{lines}\nprint(json.dumps(found))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_big_temporaries_do_not_fault_again_and_again_and_their_memory_is_given_back():
    found = measured("""
found["before"] = faults(40)  # above every threshold of malloc
with keep_freed_memory(Console(quiet=True)) as found["kept"]:
    faults(40)
    found["within"] = faults(40)
    held = resident_bytes()
found["given_back"] = held - resident_bytes()
""")
    assert found["kept"] is True
    assert found["within"] < found["before"] / 50
    assert found["given_back"] > 30 * 2**20


def test_blocks_of_a_usual_size_are_reused_once_an_engine_has_been_made():
    found = measured("""
reuse_freed_blocks()
faults(24)
found["usual"], found["large"] = faults(24), faults(48)
""")
    assert found["usual"] < found["large"] / 50


def test_an_engine_that_is_made_while_training_leaves_the_trainers_setting():
    found = measured("""
found["before"] = faults(40)
with keep_freed_memory(Console(quiet=True)):
    with keep_freed_memory(Console(quiet=True)):
        pass
    reuse_freed_blocks()
    faults(40)
    found["within"] = faults(40)
""")
    assert found["within"] < found["before"] / 50
