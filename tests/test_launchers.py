"""The command lines of launchers, value against value, each form with its manual as the source.

What mpirun and mpiexec say of themselves was recorded from Open MPI 4.1.4 and MPICH 4.0.2 of Debian 12, but for Intel's
and Open MPI 5's, which are from their manuals.
"""

import pytest

from executor.options import OptionTypeError, OptionValueError, TaskOptions, make_options
from worker_agent.launch import pack
from worker_agent.launchers import NoLauncher, Ranks, candidates, describe_missing, mpi_words, variables, words

TWO = Ranks(4, ("n1.site.org", "n2.site.org"), "/run/ranks")
HERE = Ranks(4, ("laptop",), "/run/ranks")
IN_SLURM = {"SLURM_JOB_ID": "42", "SLURM_CONF": "/etc/slurm.conf", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}


# ---- which one


def test_in_an_allocation_of_slurm_it_is_srun_and_elsewhere_that_of_the_mpi():
    assert candidates([], IN_SLURM) == ("srun",)
    assert candidates([], {}) == candidates([], {"SLURM_CONF": "x"}) == ("mpirun", "mpiexec")


def test_the_one_that_is_named_is_taken_everywhere():
    assert candidates(["mpirun"], IN_SLURM) == ("mpirun",)
    assert candidates(["/opt/my", "-n", "{ranks}"], {}) == ("/opt/my",)


def test_what_was_looked_for_and_where_is_told_if_there_is_none():
    text = describe_missing(("mpirun", "mpiexec"), "/usr/bin:/bin")
    assert "there is no mpirun and no mpiexec in PATH (/usr/bin:/bin)" in text
    assert "launcher='/opt/mpi/bin/mpirun'" in text


# ---- srun(1)


def test_srun_makes_a_step_beside_those_of_the_agents():
    assert words([], "/usr/bin/srun", TWO, IN_SLURM) == [
        "/usr/bin/srun", "--overlap", "--jobid=42", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2",
        "--nodelist=n1,n2", "--distribution=block", "--cpu-bind=none", "--mem=0", "--export=ALL", "--input=0",
        "--kill-on-bad-exit=1",
    ]  # fmt: skip


# ---- mpirun(1) of Open MPI


@pytest.mark.parametrize("version", ["mpirun (Open MPI) 4.1.4\n\nReport bugs to", "mpirun (Open MPI) 5.0.5\n"])
def test_open_mpi_is_told_the_slots_and_needs_no_leave_to_oversubscribe(version):
    assert mpi_words("/usr/bin/mpirun", version, HERE, ["PATH", "A"]) == [
        "/usr/bin/mpirun", "-n", "4", "--host", "localhost:4", "--bind-to", "none",
    ]  # fmt: skip


def test_open_mpi_is_told_which_variables_travel_to_other_hosts():
    names = ["PATH", "HPC_TASK_ID", "HOSTNAME", "SSH_TTY", "BASH_FUNC_module%%", "OMPI_MCA_btl", "SLURM_JOB_ID"]
    assert mpi_words("mpirun", "mpirun (Open MPI) 4.1.4", TWO, names)[1:] == [
        "-n", "4", "--host", "n1.site.org:2,n2.site.org:2", "--bind-to", "none", "-x", "HPC_TASK_ID", "-x", "PATH",
    ]  # fmt: skip


def test_two_agents_on_one_host_are_one_host():
    assert "localhost:4" in mpi_words("mpirun", "(Open MPI)", Ranks(4, ("n1", "n1")), [])
    assert Ranks(6, ("n1", "n2", "n1")).slots == "n1:4,n2:2"


# ---- Hydra, https://github.com/pmodels/mpich, doc/wiki/how_to/Using_the_Hydra_Process_Manager.md


@pytest.mark.parametrize(
    "version", ["HYDRA build details:\n    Version:  4.0.2", "Intel(R) MPI Library for Linux* OS, Version 2021.13"]
)
def test_hydra_is_told_how_many_each_host_gets(version):
    assert mpi_words("mpiexec", version, TWO, ["PATH"]) == [
        "mpiexec", "-n", "4", "-hosts", "n1.site.org:2,n2.site.org:2", "-bind-to", "none",
    ]  # fmt: skip


def test_of_an_unknown_mpi_the_error_says_how_to_name_it():
    with pytest.raises(NoLauncher, match=r"mpiexec --version says 'mpiexec version 1.2.0', and is neither .*launcher="):
        mpi_words("mpiexec", "mpiexec version 1.2.0", TWO, [])


# ---- flux-run(1)


def test_flux_is_told_the_hosts():
    assert words(["flux"], "/usr/bin/flux", TWO, {}) == [
        "/usr/bin/flux", "run", "--nodes=2", "--ntasks=4", "--requires=host:n1.site.org,n2.site.org", "-o",
        "cpu-affinity=off",
    ]  # fmt: skip


# ---- one's own


def test_placeholders_of_ones_own_launcher_are_replaced_and_nothing_else():
    named = ["my", "-np={ranks}", "{nodes}x{ranks_per_node}", "{hosts}", "{hostfile}", "{}", "a b"]
    assert words(named, "/bin/my", TWO, {}) == [
        "/bin/my", "-np=4", "2x2", "n1.site.org,n2.site.org", "/run/ranks", "{}", "a b",
    ]  # fmt: skip


def test_only_the_mpi_itself_knows_what_its_mpirun_takes():
    assert words([], "/usr/bin/mpirun", TWO, {}) is words(["mpiexec"], "/opt/mpiexec", TWO, {}) is None
    assert pack("/usr/bin/mpirun", TWO, ["a", "b c"]) == ["/usr/bin/mpirun", "4", "n1.site.org,n2.site.org", "a", "b c"]


# ---- variables


def test_a_launcher_does_not_hear_of_the_submitters_job():
    env = {b"PATH": b"/bin", b"SLURM_JOB_ID": b"7", b"PMIX_RANK": b"0", b"OMPI_MCA_btl": b"self", b"PBS_NODEFILE": b"f"}
    assert variables(env, {}, TWO) == {b"PATH": b"/bin", b"OMPI_MCA_btl": b"self"}


def test_in_slurm_mpirun_has_our_hosts_and_none_of_the_options_of_the_agents_step():
    env = {b"SLURM_MPI_TYPE": b"pmix", b"SLURM_NTASKS": b"99"}
    assert variables(env, IN_SLURM, TWO) == {
        b"SLURM_MPI_TYPE": b"pmix", b"SLURM_CONF": b"/etc/slurm.conf", b"SLURM_JOB_ID": b"42",
        b"SLURM_JOB_NODELIST": b"n1,n2", b"SLURM_NODELIST": b"n1,n2", b"SLURM_JOB_NUM_NODES": b"2",
        b"SLURM_NNODES": b"2", b"SLURM_TASKS_PER_NODE": b"2(x2)", b"SLURM_JOB_CPUS_PER_NODE": b"2(x2)",
        b"SLURM_OVERLAP": b"1", b"SLURM_MEM_PER_NODE": b"0", b"SLURM_CPU_BIND": b"none",
    }  # fmt: skip


def test_in_grid_engine_other_hosts_are_reached_by_qrsh_unless_the_user_says_otherwise():
    agent = {"PE_HOSTFILE": "/spool/pe_hostfile", "JOB_ID": "42", "SGE_TASK_ID": "undefined", "SGE_ROOT": "/sge"}
    told = {name.encode(): text.encode() for name, text in agent.items()}
    assert variables({b"PE_HOSTFILE": b"another", b"JOB_ID": b"7"}, agent, TWO) == {
        **told, b"OMPI_MCA_plm_rsh_agent": b"qrsh -inherit -nostdin -V", b"OMPI_MCA_plm_rsh_no_tree_spawn": b"1",
        b"HYDRA_BOOTSTRAP": b"sge",
    }  # fmt: skip
    assert variables({b"HYDRA_BOOTSTRAP": b"ssh"}, agent, TWO)[b"HYDRA_BOOTSTRAP"] == b"ssh"


# ---- the option


@pytest.mark.parametrize(
    ("written", "final"),
    [
        (None, ()),
        ("srun", ("srun",)),
        ("/opt/mpi/bin/mpirun", ("/opt/mpi/bin/mpirun",)),
        (["aprun", "-n", "{ranks}"], ("aprun", "-n", "{ranks}")),
    ],
)
def test_a_launcher_is_a_name_a_path_or_words(written, final):
    assert make_options(TaskOptions(), launcher=written).launcher == final


@pytest.mark.parametrize(
    ("written", "error", "text"),
    [
        ("aprun", OptionValueError, "Of others, say how they are used: launcher=['aprun', '-n', '{ranks}'"),
        (["a", "{rank}"], OptionValueError, "there is no {rank}; did you mean 'ranks'? There are: {ranks}, {nodes}"),
        ([], OptionValueError, "not empty"),
        (["a", 4], OptionTypeError, "expected 'srun', 'mpirun', 'mpiexec', 'flux', or the path of one"),
        (4, OptionTypeError, "expected 'srun'"),
    ],
)
def test_a_launcher_that_makes_no_sense_is_refused(written, error, text):
    with pytest.raises(error) as caught:
        make_options(TaskOptions(), launcher=written)
    assert text in str(caught.value)
