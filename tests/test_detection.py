"""What a process may use of a machine, in made-up trees of /proc, /sys and /sys/fs/cgroup."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_agent.detection import detect, divided, limited
from worker_agent.pools import UNIT, Pool

pytestmark = pytest.mark.shared

busy_machine = settings(deadline=None)  # to be slow is no failure
GIB = 1024**3
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\n"
TWO_NODES = {"devices/system/node/node0/cpulist": "0-3,8-11\n", "devices/system/node/node1/cpulist": "4-7,12-15\n"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes the files of a machine and detects it: "proc/…", "sys/…" and "cgroup/…"; by default it has 4 CPUs."""

    def write(files=(), env=(), affinity=range(4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity))
        for name, text in ({"proc/meminfo": MEMINFO} | dict(files)).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode(errors="surrogateescape"))
        pools = detect(str(tmp_path / "proc"), str(tmp_path / "sys"), str(tmp_path / "cgroup"), dict(env))
        return {pool.name: pool.groups or pool.size / UNIT for pool in pools}

    return write


def in_sys(files):
    return {f"sys/{name}": text for name, text in files.items()}


def strings(*groups):
    return [list(map(str, group)) for group in groups]


# ---- CPUs


def test_a_machine_without_anything_special_has_cpus_and_memory(machine):
    assert machine() == {"cpus": strings([0, 1, 2, 3]), "memory": 16384}


def test_cpus_are_in_the_groups_of_their_numa_nodes(machine):
    cpus = machine(in_sys(TWO_NODES), affinity=range(16))["cpus"]
    assert cpus == strings([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])


def test_an_affinity_smaller_than_the_nodes_is_obeyed_and_leaves_no_empty_group(machine):
    assert machine(in_sys(TWO_NODES), affinity={3, 9, 12})["cpus"] == strings([3, 9], [12])
    assert machine(in_sys(TWO_NODES), affinity={13, 12})["cpus"] == strings([12, 13])


def test_nodes_are_in_the_order_of_their_numbers(machine):
    nodes = {f"devices/system/node/node{node}/cpulist": f"{node}\n" for node in range(12)}
    assert machine(in_sys(nodes), affinity=range(12))["cpus"] == [[str(cpu)] for cpu in range(12)]


def test_nodes_of_memory_alone_are_no_groups(machine):
    files = {"devices/system/node/node0/cpulist": "0-3\n", "devices/system/node/node1/cpulist": "\n"}
    assert machine(in_sys(files))["cpus"] == strings([0, 1, 2, 3])


def test_cpus_that_no_node_knows_are_a_group_of_their_own(machine):
    assert machine(in_sys({"devices/system/node/node0/cpulist": "1\n"}))["cpus"] == strings([1], [0, 2, 3])


def test_no_cpu_is_in_two_groups(machine):
    files = {"devices/system/node/node0/cpulist": "0-2,1\n", "devices/system/node/node1/cpulist": "2-3\n"}
    assert machine(in_sys(files))["cpus"] == strings([0, 1, 2], [3])


def test_a_quota_limits_the_number_of_cpus_and_is_rounded_up(machine):
    files = {"proc/self/cgroup": "0::/job\n", "cgroup/job/cpu.max": "900001 100000\n"}
    cpus = machine(in_sys(TWO_NODES) | files, affinity=range(16))["cpus"]
    assert cpus == strings([0, 1, 2, 3, 8, 9, 10, 11], [4, 5])


def test_a_quota_of_less_than_one_cpu_is_one(machine):
    assert machine({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "100 100000\n"})["cpus"] == [["0"]]


def test_version_1_of_control_groups_limits_cpus_and_memory(machine):
    files = {
        "proc/self/cgroup": "5:memory:/slurm/job_7\n4:cpu,cpuacct:/slurm/job_7\n0::/\n",
        "cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "200000\n",
        "cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000\n",
        "cgroup/memory/slurm/job_7/memory.limit_in_bytes": f"{3 * GIB}\n",
        "cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
    }
    assert machine(files) == {"cpus": strings([0, 1]), "memory": 3072}


def test_in_a_container_the_root_limits_though_our_path_is_that_of_the_host(machine):
    files = {
        "proc/self/cgroup": "0::/system.slice/docker-1f.scope\n",
        "cgroup/cpu.max": "150000 100000\n",
        "cgroup/memory.max": f"{2 * GIB}\n",
    }
    assert machine(files) == {"cpus": strings([0, 1]), "memory": 2048}


def test_in_a_shared_allocation_of_slurm_only_what_was_granted_is_ours(machine):
    """Of a node with 16 CPUs the job has 4; where Slurm binds nothing, its variables alone say so."""
    granted = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "512"}
    bound = machine(in_sys(TWO_NODES), granted, affinity={2, 3, 4, 5})
    assert bound == {"cpus": strings([2, 3], [4, 5]), "memory": 2048}
    unbound = machine(in_sys(TWO_NODES), granted, affinity=range(16))
    assert unbound == {"cpus": strings([0, 1, 2, 3]), "memory": 2048}


def test_in_a_step_of_slurm_each_process_has_the_cpus_of_a_task(machine):
    env = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "2", "SLURM_STEP_ID": "0"}
    assert machine(env=env)["cpus"] == strings([0, 1])


def test_a_grant_of_more_than_there_is_gives_what_there_is(machine):
    env = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "64", "SLURM_MEM_PER_NODE": "999999"}
    assert machine(env=env) == {"cpus": strings([0, 1, 2, 3]), "memory": 16384}


# ---- memory


def test_memory_is_whole_mib(machine):
    assert machine({"proc/meminfo": "MemTotal: 3000 kB\n"})["memory"] == 2


def test_memory_of_which_nobody_says_how_much_is_no_resource(machine):
    assert "memory" not in machine({"proc/meminfo": "Nonsense: 1 kB\n"})


# ---- GPUs


def nvidia(*buses, more=""):
    text = f"Model: \t\t H100\nDevice Minor: \t 3\n{more}"
    return {f"proc/driver/nvidia/gpus/{bus}/information": text for bus in buses}


def amd(*simds):
    nodes = "sys/class/kfd/kfd/topology/nodes"
    return {f"{nodes}/{node}/properties": f"cpu_cores_count 0\nsimd_count {n}\n" for node, n in enumerate(simds)}


def test_gpus_of_nvidia_are_numbered_as_the_bus_does_whatever_their_device_files_are(machine):
    assert machine(nvidia("0000:af:00.0", "0000:3b:00.0"))["gpus/nvidia"] == [["0", "1"]]


def test_a_gpu_that_the_driver_excludes_or_does_not_know_is_none(machine):
    files = nvidia("0000:3b:00.0") | nvidia("0000:af:00.0", more="GPU Excluded:\t Yes\n")
    assert machine(files | {"proc/driver/nvidia/gpus/0000:d8:00.0/information": ""})["gpus/nvidia"] == [["0"]]


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("0", ["0"]),
        ("2, 0", ["2", "0"]),
        ("GPU-8f1a-2c,MIG-77-aa", ["GPU-8f1a-2c", "MIG-77-aa"]),
        ("MIG-GPU-8f1a/1/0", ["MIG-GPU-8f1a/1/0"]),
        ("1,-1,0", ["1"]),
        ("1,1", ["1"]),
        ("", None),
        ("-1", None),
        ("NoDevFiles", None),
        ("nonsense", None),
    ],
)
def test_the_gpus_that_are_visible_count(machine, text, devices):
    found = machine(nvidia("0000:3b:00.0", "0000:af:00.0", "0000:d8:00.0"), {"CUDA_VISIBLE_DEVICES": text})
    assert found.get("gpus/nvidia") == (devices and [devices])


def test_gpus_that_are_visible_count_where_the_driver_shows_nothing(machine):
    assert machine(env={"CUDA_VISIBLE_DEVICES": "0,1"})["gpus/nvidia"] == [["0", "1"]]


def test_gpus_of_amd_are_the_nodes_of_the_driver_that_have_their_processors(machine):
    assert machine(amd(0, 256, 0, 256))["gpus/amd"] == [["0", "1"]]
    assert machine(amd(0, 256, 0, 256), {"ROCR_VISIBLE_DEVICES": "1"})["gpus/amd"] == [["1"]]
    assert "gpus/amd" not in machine(amd(0, 256, 0, 256), {"ROCR_VISIBLE_DEVICES": ""})


def test_a_machine_without_gpus_has_no_pool_of_them(machine):
    assert set(machine(amd(0, 0))) == {"cpus", "memory"}


def test_the_variable_of_one_maker_is_not_believed_where_only_the_other_has_a_driver(machine, tmp_path):
    """Slurm sets the variables of both unless ``gres.conf`` says otherwise."""
    both = {"CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "0"}
    assert set(machine(nvidia("0000:3b:00.0"), both)) == {"cpus", "memory", "gpus/nvidia"}
    (tmp_path / "proc/driver").rename(tmp_path / "driver")
    assert set(machine(amd(0, 256), both)) == {"cpus", "memory", "gpus/amd"}


# ---- machines as they are not


FILES = (
    "proc/meminfo", "proc/self/cgroup", "cgroup/cpu.max", "cgroup/memory.max", "sys/devices/system/node/node0/cpulist",
    "sys/class/kfd/kfd/topology/nodes/0/properties", "proc/driver/nvidia/gpus/0000:3b:00.0/information",
)  # fmt: skip


@pytest.mark.parametrize("text", ["", "\n", "\0", "\udcff", "-", "0-", "-3", "3-0", "x,,y", "9" * 99, "٣", "max", ":"])
def test_strange_files_set_no_limit(machine, text):
    assert machine(dict.fromkeys(FILES, text)) == {"cpus": strings([0, 1, 2, 3])}


@pytest.mark.parametrize("text", ["", "x", "-4", "9" * 5000, "٣", "1.5", "\udcff"])
def test_strange_variables_set_no_limit(machine, text):
    names = ("SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "NCPUS", "NSLOTS")
    env = dict.fromkeys(names, text) | {"SLURM_JOB_ID": "1", "PBS_JOBID": "1", "JOB_ID": "1", "NHOSTS": "1"}
    assert machine(env=env) == {"cpus": strings([0, 1, 2, 3]), "memory": 16384}


def test_directories_and_files_in_each_others_places_set_no_limit(machine, tmp_path):
    for name in FILES[1:5]:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/driver").write_text("")
    (tmp_path / "sys/class").write_text("")
    assert machine() == {"cpus": strings([0, 1, 2, 3]), "memory": 16384}


def test_the_machine_of_this_test_is_detected():
    source = """if True:
        import os
        from worker_agent.detection import detect
        cpu = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpu})
        pools = {pool.name: pool for pool in detect(env={})}
        print(pools["cpus"].groups == [[str(cpu)]] and pools["memory"].size > 0)
    """
    assert subprocess.check_output([sys.executable, "-c", source], text=True) == "True\n"


def test_to_detect_a_large_machine_takes_milliseconds(machine, tmp_path):
    nodes = {f"sys/devices/system/node/node{n}/cpulist": f"{32 * n}-{32 * n + 31}\n" for n in range(16)}
    machine(nodes | nvidia(*(f"0000:{n:02}:00.0" for n in range(8))), affinity=range(512))
    trees = [str(tmp_path / name) for name in ("proc", "sys", "cgroup")]
    times = []
    for _ in range(20):
        began = time.thread_time()
        detect(*trees, {})
        times.append(time.thread_time() - began)
    assert min(times) < 0.005


# ---- less, or more, or parts of it

POOLS = [
    Pool("cpus", strings([0, 1, 2], [3, 4, 5])),
    Pool("memory", size=1001 * UNIT),
    Pool("gpus/nvidia", [["a", "b"]]),
]


def test_fewer_cpus_are_the_first_and_keep_their_groups():
    assert limited(POOLS, 4) == [Pool("cpus", strings([0, 1, 2], [3])), *POOLS[1:]]
    assert limited(POOLS, 3) == [Pool("cpus", strings([0, 1, 2])), *POOLS[1:]]
    assert limited(POOLS, 6) == POOLS
    assert limited(POOLS, 0) == POOLS[1:]


def test_more_cpus_than_there_are_follow_the_greatest_number():
    assert limited(POOLS, 9) == [Pool("cpus", strings([0, 1, 2, 6, 8], [3, 4, 5, 7])), *POOLS[1:]]
    assert limited([Pool("cpus", strings([9, 4]))], 3) == [Pool("cpus", strings([9, 4, 10]))]
    assert limited([], 2) == [Pool("cpus", strings([0, 1]))]


def test_the_given_pools_stay_as_they_are():
    pools = [Pool("cpus", strings([0, 1]))]
    limited(pools, 5)
    divided(pools, 2)[0][0].groups[0].append("x")
    assert pools == [Pool("cpus", strings([0, 1]))]


def test_agents_divide_pools_evenly_and_neighbours_stay_together():
    assert divided(POOLS, 2) == [
        [Pool("cpus", strings([0, 1, 2])), Pool("memory", size=5005000), Pool("gpus/nvidia", [["a"]])],
        [Pool("cpus", strings([3, 4, 5])), Pool("memory", size=5005000), Pool("gpus/nvidia", [["b"]])],
    ]


def test_what_is_left_over_goes_to_the_first_agents():
    assert divided([Pool("cpus", strings([0, 1], [2, 3])), Pool("gpus/amd", [["0"]]), Pool("x", size=2)], 3) == [
        [Pool("cpus", strings([0, 1])), Pool("gpus/amd", [["0"]]), Pool("x", size=1)],
        [Pool("cpus", strings([2])), Pool("x", size=1)],
        [Pool("cpus", strings([3]))],
    ]


@pytest.mark.parametrize(("function", "number"), [(limited, -1), (divided, 0)])
def test_numbers_that_make_no_sense_are_refused(function, number):
    with pytest.raises(ValueError, match=rf"={number}: expected"):
        function(POOLS, number)


def partition(names, cuts):
    edges = [0, *sorted(min(cut, len(names)) for cut in cuts), len(names)]
    return [names[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]


groups = st.builds(partition, st.lists(st.integers(0, 999).map(str), unique=True), st.lists(st.integers(0, 30)))


@busy_machine
@given(groups, st.integers(0, 10**9), st.integers(1, 12))
def test_nothing_is_given_twice_and_all_is_given(cpus, size, count):
    agents = divided([Pool("cpus", cpus), Pool("memory", size=size)], count)
    parts = [[pool for pool in agent if pool.name == "cpus"] for agent in agents]
    assert [name for part in parts for pool in part for group in pool.groups for name in group] == sum(cpus, [])
    assert all(group for part in parts for pool in part for group in pool.groups)
    for name, total in (("cpus", UNIT * sum(map(len, cpus))), ("memory", size)):
        amounts = [sum(pool.total for pool in agent if pool.name == name) for agent in agents]
        assert sum(amounts) == total
        assert amounts == sorted(amounts, reverse=True)
        assert max(amounts) - min(amounts) <= (UNIT if name == "cpus" else 1)


@busy_machine
@given(groups, st.integers(0, 60))
def test_limited_cpus_are_just_so_many_and_different(cpus, count):
    pools = limited([Pool("cpus", cpus)], count)
    chosen = [group for pool in pools for group in pool.groups]
    names = sum(chosen, [])
    assert len(names) == len(set(names)) == count
    assert all(chosen)
    there = sum(cpus, [])
    assert set(names) <= set(there) if count <= len(there) else set(names) >= set(there)
