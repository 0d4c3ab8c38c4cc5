"""Which variables tell a task what it was given."""

import pytest

from worker_agent.pinning import pin_variables
from worker_agent.pools import UNIT, Share
from worker_agent.task_variables import THREADS, cpus_of, lane_variables, node_variables, place_variables

CPUS = Share("cpus", 2 * UNIT, ["3", "2"])
MEMORY = Share("memory", 1024 * UNIT)


# ---- what is the same in all places of a lane


def test_a_task_sees_what_was_asked_for_and_has_as_many_threads_as_cpus():
    request = [("cpus", "2 compact"), ("gpus/nvidia", "0.5 compact")]
    assert lane_variables(request, None, [CPUS, MEMORY], {}) == {
        "HPC_RESOURCE_REQUEST_cpus": "2 compact",
        "HPC_RESOURCE_REQUEST_gpus_nvidia": "0.5 compact",
        "HQ_RESOURCE_REQUEST_cpus": "2 compact",
        "HQ_RESOURCE_REQUEST_gpus_nvidia": "0.5 compact",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "NUMEXPR_NUM_THREADS": "2",
        "VECLIB_MAXIMUM_THREADS": "2",
        "BLIS_NUM_THREADS": "2",
        "NUMBA_NUM_THREADS": "2",
    }


def test_of_several_requests_the_one_that_was_met_is_told():
    assert lane_variables([], 0, [], {}) == {"HPC_RESOURCE_VARIANT": "0", "HQ_RESOURCE_VARIANT": "0"}


def test_threads_that_the_user_has_set_stay_as_they_are():
    variables = lane_variables([], None, [CPUS], {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": ""})
    assert variables == dict.fromkeys(THREADS[2:], "2")


@pytest.mark.parametrize("amount", [UNIT // 2, 3 * UNIT // 2, 0])
def test_parts_of_cpus_are_no_number_of_threads(amount):
    assert lane_variables([], None, [Share("cpus", amount, ["0", "1"])], {}) == {}


def test_without_cpus_threads_are_as_they_were():
    assert lane_variables([], None, [MEMORY], {}) == {}


# ---- what each place has


def test_a_task_sees_the_parts_that_it_has():
    shares = [CPUS, Share("fpga/x-1_é", 15000, ["b", "a"]), MEMORY]
    assert place_variables(shares) == {
        "HPC_RESOURCE_VALUES_cpus": "3,2",
        "HPC_RESOURCE_VALUES_fpga_x_1__": "b,a",
        "HPC_CPUS": "3,2",
        "HQ_RESOURCE_VALUES_cpus": "3,2",
        "HQ_RESOURCE_VALUES_fpga_x_1__": "b,a",
        "HQ_CPUS": "3,2",
    }


def test_gpus_of_nvidia_are_visible_in_the_order_in_which_they_were_counted():
    assert place_variables([Share("gpus/nvidia", 15000, ["1", "GPU-8f"])]) == {
        "HPC_RESOURCE_VALUES_gpus_nvidia": "1,GPU-8f",
        "HQ_RESOURCE_VALUES_gpus_nvidia": "1,GPU-8f",
        "CUDA_VISIBLE_DEVICES": "1,GPU-8f",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_gpus_of_amd_are_visible():
    assert place_variables([Share("gpus/amd", UNIT, ["1"])]) == {
        "HPC_RESOURCE_VALUES_gpus_amd": "1",
        "HQ_RESOURCE_VALUES_gpus_amd": "1",
        "ROCR_VISIBLE_DEVICES": "1",
    }


def test_what_has_no_parts_has_no_values():
    assert place_variables([MEMORY]) == {}


# ---- where it is to stay


def test_a_task_that_is_pinned_knows_how():
    assert pin_variables("taskset", [3, 2]) == {"HPC_PIN": "taskset", "HQ_PIN": "taskset"}
    assert pin_variables("omp", [3, 2]) == {
        "HPC_PIN": "omp", "HQ_PIN": "omp", "OMP_PROC_BIND": "close", "OMP_PLACES": "{3},{2}",
    }  # fmt: skip


@pytest.mark.parametrize(("pin", "cpus"), [("", [3, 2]), ("omp", []), ("taskset", [])])
def test_a_task_that_is_not_pinned_or_has_no_cpus_is_told_nothing(pin, cpus):
    assert pin_variables(pin, cpus) == {}


def test_the_cpus_of_a_task_are_numbers():
    assert cpus_of([MEMORY, CPUS]) == [3, 2]
    assert cpus_of([Share("cpus", UNIT // 2, ["12"])]) == [12]
    assert cpus_of([MEMORY]) == []


def test_a_task_on_several_nodes_is_told_how_many_and_where_their_names_are():
    assert node_variables(3, "/dev/shm/nodes", "/dev/shm/hosts") == {
        "HPC_NUM_NODES": "3",
        "HPC_NODE_FILE": "/dev/shm/nodes",
        "HPC_HOST_FILE": "/dev/shm/hosts",
        "HQ_NUM_NODES": "3",
        "HQ_NODE_FILE": "/dev/shm/nodes",
        "HQ_HOST_FILE": "/dev/shm/hosts",
    }
