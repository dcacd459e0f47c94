"""torchrun with one line instead of its tracebacks."""

import signal
import subprocess
import sys
import time

import pytest

from leveret.launch.agent import said

WORDS = [sys.executable, "-m", "leveret.launch.agent", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
FAILS = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit(7); time.sleep(60)"


@pytest.mark.slow
def test_a_failure_is_one_line_and_a_signal_is_an_exit_code(tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    done = subprocess.run([*WORDS, str(tmp_path / "fails.py")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "ended: process 0 with SIGTERM, process 1 with code 7"
    waits = f"import os, time; open(r'{tmp_path}/began-' + os.environ['RANK'], 'w'); time.sleep(60)"
    (tmp_path / "waits.py").write_text(waits)
    process = subprocess.Popen([*WORDS, str(tmp_path / "waits.py")], stderr=subprocess.PIPE, text=True)
    while not all((tmp_path / f"began-{rank}").exists() for rank in range(2)):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)  # as long as torchrun starts processes, it does not pass signals on
    process.terminate()
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in shown


def test_an_end_is_told_by_code_or_by_name():
    assert (said(3), said(-9)) == ("code 3", "SIGKILL")
