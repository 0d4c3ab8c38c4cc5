"""What batch systems tell by variables, as real jobs have them."""

import pytest

from worker_agent.grants import default_group, granted_cpus, granted_memory, remaining_seconds

pytestmark = pytest.mark.shared

MIB = 1024**2
SLURM = {"SLURM_JOB_ID": "200505", "SLURM_CPUS_ON_NODE": "8"}


@pytest.mark.parametrize(
    ("env", "cpus"),
    [
        ({}, None),
        (SLURM, 8),
        # sbatch --ntasks=4 --cpus-per-task=2: the script has all of them
        (SLURM | {"SLURM_CPUS_PER_TASK": "2"}, 8),
        (SLURM | {"SLURM_CPUS_PER_TASK": "2", "SLURM_STEP_ID": "0"}, 2),
        # left over from a job with more
        (SLURM | {"SLURM_CPUS_PER_TASK": "16", "SLURM_STEP_ID": "0"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8"}, None),
        (SLURM | {"SLURM_CPUS_ON_NODE": "many"}, None),
        (SLURM | {"SLURM_CPUS_ON_NODE": "0"}, None),
        ({"PBS_JOBID": "17.head", "NCPUS": "4"}, 4),
        ({"NCPUS": "4"}, None),
        ({"JOB_ID": "5", "NSLOTS": "6", "NHOSTS": "1"}, 6),
        ({"JOB_ID": "5", "NSLOTS": "6", "NHOSTS": "2"}, None),
        ({"JOB_ID": "5", "NSLOTS": "6"}, None),
    ],
)
def test_the_cpus_that_were_granted(env, cpus):
    assert granted_cpus(env) == cpus


@pytest.mark.parametrize(
    ("env", "mib"),
    [
        ({}, None),
        (SLURM, None),
        (SLURM | {"SLURM_MEM_PER_NODE": "2000"}, 2000),
        (SLURM | {"SLURM_MEM_PER_NODE": "0"}, None),
        (SLURM | {"SLURM_MEM_PER_CPU": "100"}, 800),
        (SLURM | {"SLURM_MEM_PER_CPU": "100", "SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "2"}, 200),
        ({"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "100"}, 300),
        ({"SLURM_MEM_PER_NODE": "2000"}, None),
    ],
)
def test_the_memory_that_was_granted(env, mib):
    assert granted_memory(env, 3) == (None if mib is None else mib * MIB)


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1600"}, 600),
        ({"SLURM_JOB_END_TIME": "900"}, 0),
        ({"SLURM_JOB_END_TIME": ""}, None),
        ({"SLURM_JOB_END_TIME": "9" * 5000}, None),
        ({"PBS_WALLTIME": "3600"}, 3600),
        ({"PBS_WALLTIME": "01:00:00"}, None),
        ({"SLURM_JOB_END_TIME": "1600", "PBS_WALLTIME": "60"}, 60),
    ],
)
def test_the_time_that_is_left(env, seconds):
    assert remaining_seconds(env, 1000.0) == seconds


@pytest.mark.parametrize(
    ("env", "group"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "200505"}, "slurm-200505"),
        ({"SLURM_JOB_ID": ""}, ""),
        ({"PBS_JOBID": "17[4].head"}, "pbs-17[4].head"),
        ({"JOB_ID": "5", "SGE_TASK_ID": "undefined"}, "sge-5"),
        ({"JOB_ID": "5", "SGE_TASK_ID": "3"}, "sge-5.3"),
        ({"JOB_ID": "5", "SGE_ROOT": "/opt/sge"}, "sge-5"),
        ({"JOB_ID": "5"}, ""),
        ({"SGE_ROOT": "/opt/sge"}, ""),
        ({"FLUX_JOB_ID": "f2oYkcB", "SLURM_JOB_ID": "200505"}, "flux-f2oYkcB"),
    ],
)
def test_agents_of_one_batch_job_are_one_group(env, group):
    assert default_group(env) == group
