"""What control groups leave to us, in made-up trees of both versions."""

import os
import subprocess
import sys

import pytest

from worker_agent.cgroups import cpu_quota, memory_limit, usable_cpus

pytestmark = pytest.mark.shared

MIB = 1024**2
#: what version 1 says where there is no limit
UNLIMITED = 2**63 - 4096


@pytest.fixture
def machine(tmp_path):
    """Writes a fake /proc and /sys/fs/cgroup; returns where they are."""

    def write(own, **files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(own)
        for name, text in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return str(tmp_path / "proc"), str(tmp_path / "cgroup")

    return write


# ---- CPUs


def test_the_quota_of_the_own_group_counts(machine):
    assert cpu_quota(*machine("0::/job\n", **{"job/cpu.max": "150000 100000\n"})) == 1.5


def test_the_smallest_quota_of_all_groups_around_us_counts(machine):
    files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 25000\n", "cpu.max": "300000 100000\n"}
    assert cpu_quota(*machine("0::/a/b\n", **files)) == 2


def test_groups_beside_ours_do_not_count(machine):
    assert cpu_quota(*machine("0::/a\n", **{"b/cpu.max": "1000 100000\n"})) is None


def test_in_a_container_the_root_counts_though_our_path_is_that_of_the_host(machine):
    assert cpu_quota(*machine("0::/docker/1f\n", **{"cpu.max": "200000 100000\n"})) == 2


def test_a_path_out_of_our_namespace_does_not_lead_out_of_the_tree(machine, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/cpu.max").write_text("1000 100000\n")
    assert cpu_quota(*machine("0::/../x\n")) is None


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_version_1_has_its_quota_in_two_files(machine, controllers):
    files = {
        f"{controllers}/job/cpu.cfs_quota_us": "250000\n", f"{controllers}/job/cpu.cfs_period_us": "100000\n",
        f"{controllers}/cpu.cfs_quota_us": "-1\n", f"{controllers}/cpu.cfs_period_us": "100000\n",
    }  # fmt: skip
    own = f"5:memory:/other\n4:{controllers}:/job\n1:name=systemd:/x\n0::/\n"
    assert cpu_quota(*machine(own, **files)) == 2.5


def test_where_both_versions_are_in_use_version_2_is_beside(machine):
    assert cpu_quota(*machine("0::/job\n", **{"unified/job/cpu.max": "400000 100000\n"})) == 4


@pytest.mark.parametrize(
    "text", ["max 100000\n", "", "nonsense\n", "1 2 3\n", "100000 0\n", "0 100000\n", "-1 100000\n"]
)
def test_what_is_no_quota_sets_no_limit(machine, text):
    assert cpu_quota(*machine("0::/\nnonsense\n", **{"cpu.max": text})) is None


def test_without_control_groups_the_affinity_counts(tmp_path):
    assert usable_cpus(str(tmp_path), str(tmp_path)) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "cpus"), [("1000 100000", 1), ("100000 100000", 1), ("99900000 100000", None)])
def test_usable_cpus_are_within_affinity_and_quota_and_at_least_one(machine, quota, cpus):
    assert usable_cpus(*machine("0::/\n", **{"cpu.max": quota})) == (cpus or len(os.sched_getaffinity(0)))


def test_a_part_of_a_cpu_is_one_more(machine):
    affinity = len(os.sched_getaffinity(0))
    assert usable_cpus(*machine("0::/\n", **{"cpu.max": "100001 100000"})) == min(2, affinity)


def test_a_smaller_affinity_is_obeyed():
    source = """if True:
        import os
        from worker_agent.cgroups import usable_cpus
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(usable_cpus())
    """
    assert subprocess.check_output([sys.executable, "-c", source], text=True) == "1\n"


# ---- memory


def test_the_smallest_memory_limit_of_all_groups_around_us_counts(machine):
    files = {"a/b/memory.max": "max\n", "a/memory.max": f"{512 * MIB}\n", "memory.max": f"{900 * MIB}\n"}
    assert memory_limit(*machine("0::/a/b\n", **files)) == 512 * MIB


def test_the_memory_of_groups_beside_ours_does_not_count(machine):
    assert memory_limit(*machine("0::/a\n", **{"b/memory.max": "4096\n"})) is None


def test_in_a_container_the_memory_of_the_root_counts_though_our_path_is_that_of_the_host(machine):
    assert memory_limit(*machine("0::/kubepods/pod1/f00\n", **{"memory.max": f"{256 * MIB}\n"})) == 256 * MIB


@pytest.mark.parametrize("controllers", ["memory", "cpuset,memory"])
def test_version_1_has_its_memory_limit_with_the_controller(machine, controllers):
    files = {
        f"{controllers}/slurm/job_7/memory.limit_in_bytes": f"{300 * MIB}\n",
        f"{controllers}/slurm/memory.limit_in_bytes": f"{UNLIMITED}\n",
        f"{controllers}/memory.limit_in_bytes": f"{UNLIMITED}\n",
    }
    assert memory_limit(*machine(f"9:{controllers}:/slurm/job_7\n4:cpu:/\n0::/\n", **files)) == 300 * MIB


def test_version_1_in_a_container_has_its_limit_at_the_root(machine):
    files = {"memory/memory.limit_in_bytes": f"{64 * MIB}\n"}
    assert memory_limit(*machine("9:memory:/docker/1f\n0::/\n", **files)) == 64 * MIB


@pytest.mark.parametrize("text", ["max\n", "", "nonsense\n", "0\n", "-1\n", "1 2\n", "9" * 5000, "\u0663\n"])
def test_what_is_no_memory_limit_sets_none(machine, text):
    assert memory_limit(*machine("0::/\nnonsense\n", **{"memory.max": text})) is None


@pytest.mark.parametrize("own", ["0::/a\0b\n", "0::/\udcff\n", "0::\n", ":::::\n", "0\n"])
def test_a_strange_list_of_our_groups_sets_no_limit(tmp_path, own):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_bytes(own.encode(errors="surrogateescape"))
    assert memory_limit(str(tmp_path), str(tmp_path)) is None
    assert cpu_quota(str(tmp_path), str(tmp_path)) is None


def test_a_group_may_have_a_name_in_any_letters(machine):
    assert memory_limit(*machine("0::/größe\n", **{"größe/memory.max": f"{MIB}\n"})) == MIB
