"""Hostfiles, SLURM's variables, and this machine."""

import socket

import pytest

from leveret.errors import ConfigError
from leveret.launch.machines import Machine, SlurmJob, count_accelerators, expand_nodes, is_here, read_hostfile


def hosts(tmp_path, text):
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


def test_a_hostfile_as_deepspeed_has_it(tmp_path):
    path = hosts(tmp_path, "# ours\n192.168.0.2 slots=8\n\n  gpu-3\tslots=4  # the small one\nme@10.0.0.9 slots=2\n")
    assert read_hostfile(path) == [
        Machine(host="192.168.0.2", slots=8), Machine(host="gpu-3", slots=4), Machine(host="me@10.0.0.9", slots=2),
    ]  # fmt: skip
    assert read_hostfile(path)[2].address == "10.0.0.9"


def test_a_hostfile_of_mpi_says_how_many_slots_there_are_at_most(tmp_path):
    path = hosts(tmp_path, "a slots=8 max_slots=8\nb slots=2 max-slots=4  # shared\n")
    assert read_hostfile(path) == [Machine(host="a", slots=8), Machine(host="b", slots=2)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a slots=8\nb\n", "hosts:2: expected `HOST slots=N`, not 'b'"),
        ("a slots=eight\n", "hosts:1: expected"),
        ("a slots=8 max_slots=4\n", "hosts:1: a has 8 slots, and max_slots is 4"),
        ("a slots=8 max_slots=many\n", "hosts:1: expected"),
        ("slots=8\n", "hosts:1: expected"),
        ("a slots=0\n", "hosts:1: a has no slots"),
        ("a slots=8\n# b\na slots=4\n", "hosts:3: a stands in line 1 already"),
        ("# nothing\n", "names no machine"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(tmp_path, text, told):
    with pytest.raises(ConfigError) as caught:
        read_hostfile(hosts(tmp_path, text))
    assert told in str(caught.value) and str(tmp_path / "hosts") in str(caught.value)


def test_a_hostfile_may_begin_with_a_byte_order_mark_but_must_be_text(tmp_path):
    assert read_hostfile(hosts(tmp_path, "\ufefflocalhost slots=2\n")) == [Machine(host="localhost", slots=2)]
    (tmp_path / "hosts").write_bytes(b"\xff\xfea slots=2")
    with pytest.raises(ConfigError, match=r"hosts is not UTF-8: .* at byte 0"):
        read_hostfile(tmp_path / "hosts")


def test_a_missing_hostfile_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("login", ["login"]),
        ("gpu[01-03,07],cpu5", ["gpu01", "gpu02", "gpu03", "gpu07", "cpu5"]),
        ("a[9-11]", ["a9", "a10", "a11"]),
        ("r[1-2]-ib", ["r1-ib", "r2-ib"]),
        ("a,b", ["a", "b"]),
        ("rack[1-2]n[08,10]-ib,x", ["rack1n08-ib", "rack1n10-ib", "rack2n08-ib", "rack2n10-ib", "x"]),
    ],
)
def test_lists_of_nodes(names, expected):
    assert expand_nodes(names) == expected


@pytest.mark.parametrize("names", ["n[a-b]", "n[1-]", "n[3-1]", "r[1-2]n[x]", "n[]"])
def test_a_list_that_is_none_is_refused(names):
    with pytest.raises(ConfigError, match=r"in brackets.*\n.*--hostfile"):
        expand_nodes(names)


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_GPUS_ON_NODE": "8"}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[1-2]", "SLURM_NODEID": "1"}


def test_the_script_of_a_job_and_a_task_of_a_step():
    machines = (Machine(host="gpu1", slots=8), Machine(host="gpu2", slots=8))
    assert SlurmJob.from_environment(JOB, nproc=None) == SlurmJob(machines=machines, node=None)
    assert SlurmJob.from_environment(STEP, nproc=None) == SlurmJob(machines=machines, node=1)
    without_list = {name: value for name, value in STEP.items() if name != "SLURM_STEP_NODELIST"}
    assert SlurmJob.from_environment(without_list, nproc=None) == SlurmJob(machines=machines, node=1)
    fewer = SlurmJob.from_environment({**STEP, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, nproc=2)
    assert fewer is not None and fewer.machines[0].slots == 2
    assert SlurmJob.from_environment({}, nproc=None) is None


@pytest.mark.parametrize(
    ("variables", "slots"),
    [
        ({"SLURM_GPUS_PER_NODE": "4"}, 4),
        ({"SLURM_GPUS_PER_NODE": "h100:4", "SLURM_NTASKS_PER_NODE": "1"}, 4),
        ({"SLURM_GPUS_PER_NODE": "h100:4,a100:2"}, 6),
        ({"SLURM_GPUS_PER_NODE": "a100:2(S:0-1)"}, 2),
        ({"SLURM_GPUS_PER_NODE": "gpu:a100:4(S:0,2),h100:1(S:1)"}, 5),
        ({"SLURM_NTASKS_PER_NODE": "3"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1),
    ],
)
def test_without_the_gpus_of_this_node_the_job_says_how_many_processes_there_are(variables, slots):
    job = SlurmJob.from_environment({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[1-2]", **variables}, nproc=None)
    assert job is not None and [machine.slots for machine in job.machines] == [slots, slots]


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "4294967292"])
def test_the_steps_that_slurm_makes_itself_are_none_of_srun(step):
    job = SlurmJob.from_environment({**STEP, "SLURM_STEP_ID": step, "SLURM_STEP_NODELIST": "gpu1"}, nproc=None)
    assert job == SlurmJob.from_environment(JOB, nproc=None)


def test_a_node_that_the_list_lacks_is_named():
    with pytest.raises(ConfigError, match=r"SLURM_NODEID is 2, but .* 2 machines: gpu\[1-2\]"):
        SlurmJob.from_environment({**STEP, "SLURM_NODEID": "2"}, nproc=None)


def test_several_tasks_on_a_node_are_refused():
    with pytest.raises(ConfigError, match=r"8 tasks on a node.*\n.*--ntasks-per-node=1"):
        SlurmJob.from_environment({**STEP, "SLURM_STEP_TASKS_PER_NODE": "8"}, nproc=None)


def test_this_machine_is_found_by_name_and_address():
    assert is_here(Machine(host="127.0.0.1", slots=1))
    assert is_here(Machine(host="me@localhost", slots=1))
    assert not is_here(Machine(host="192.0.2.1", slots=1))  # kept for documentation, nobody has it
    assert socket.gethostname()


def test_accelerators_are_counted_without_a_driver(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "null"):
        (tmp_path / name).touch()
    assert count_accelerators({}, tmp_path) == 2
    assert count_accelerators({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
    assert count_accelerators({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
