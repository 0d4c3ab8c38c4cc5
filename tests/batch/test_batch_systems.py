"""Which batch systems there are: by name, by what is in PATH, and those that a site brings along."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from executor.batch.grid_engine import GridEngineSystem
from executor.batch.systems import GROUP, find_system, get_system
from executor.clusters import PBS, Flux, GridEngine, Slurm, check_clusters


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path


def make(path: Path, *programs: str) -> dict[str, str]:
    for program in programs:
        (path / program).touch(0o700)
    return {"PATH": str(path)}


@pytest.mark.parametrize("name", ["slurm", "sge", "pbs", "torque", "flux"])
def test_each_has_a_name(name: str) -> None:
    assert get_system(name).name == name


def test_settings_go_to_the_system() -> None:
    assert get_system("sge", pe="smp") == GridEngineSystem(pe="smp")
    with pytest.raises(TypeError, match="'pee'"):
        get_system("sge", pee="smp")


def test_an_unknown_name_says_which_there_are_and_how_others_come() -> None:
    with pytest.raises(ValueError, match=f"'lsf': expected one of flux, local, pbs, sge, slurm, torque; .*'{GROUP}'"):
        get_system("lsf")


@pytest.mark.parametrize(
    ("programs", "name"),
    [
        (["sbatch"], "slurm"),
        (["qsub", "qstat", "qconf"], "sge"),
        (["qsub", "qstat", "pbs_rstat"], "pbs"),
        (["qsub", "qstat", "pbs_track"], "torque"),
        (["sbatch", "qsub", "qstat", "pbsnodes"], "slurm"),  # with its wrappers for users of Torque
        (["flux"], "flux"),
    ],
)
def test_the_one_is_found_whose_commands_are_in_path(path: Path, programs: list[str], name: str) -> None:
    assert find_system(make(path, *programs)).name == name


def test_of_several_it_is_the_one_that_variables_tell_of(path: Path) -> None:
    env = make(path, "sbatch", "qconf", "flux")
    assert find_system({**env, "SLURM_JOB_ID": "1"}).name == "slurm"
    assert find_system({**env, "SGE_ROOT": "/opt/sge"}).name == "sge"
    assert find_system({**env, "FLUX_URI": "local:///run/flux/local"}).name == "flux"
    with pytest.raises(LookupError, match=r"several batch systems \(slurm, sge, flux\)"):
        find_system({**env, "PMIX_RANK": "0"})  # which others set, too


def test_where_there_is_none_it_says_what_it_looked_for(path: Path) -> None:
    with pytest.raises(LookupError, match=r"none of sbatch \(slurm\), qconf \(sge\), .* is in PATH"):
        find_system(make(path))


@pytest.fixture
def site(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of a site, as if it were installed."""
    (path / "site_of_ours.py").write_text(
        "from executor.batch.slurm import SlurmSystem\n"
        "class Ours(SlurmSystem):\n    name = 'ours'\n    program = 'our-sbatch'\n"
        "def wrong():\n    return 'nothing'\n"
    )
    info = path / "site_of_ours-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: site-of-ours\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nours = site_of_ours:Ours\nslurm = site_of_ours:Ours\nwrong = site_of_ours:wrong\n"
    )
    monkeypatch.syspath_prepend(path)
    monkeypatch.delitem(sys.modules, "site_of_ours", raising=False)


@pytest.mark.usefixtures("site")
def test_a_site_brings_along_its_own_and_may_take_the_place_of_one_of_ours() -> None:
    assert get_system("ours").program == "our-sbatch"
    assert get_system("slurm").name == "ours"
    with pytest.raises(TypeError, match="'wrong' is 'nothing': expected its entry point to make a BatchSystem"):
        get_system("wrong")


# ---- the clusters that stand for them


def test_clusters_are_checked_where_they_are_written() -> None:
    clusters = [
        Slurm(cpus=2, partition="long"), GridEngine(cpus=2, pe="smp"), PBS(nodes=3), PBS(torque=True), Flux(gpus=1),
    ]  # fmt: skip
    systems = [each.system().name for each in check_clusters(clusters)]
    assert systems == ["slurm", "sge", "pbs", "torque", "flux"]


@pytest.mark.parametrize(
    ("cluster", "wrong"),
    [
        (lambda: GridEngine(), "cpus=None: Grid Engine gives slots"),
        (lambda: check_clusters([GridEngine(cpus=2)]), "pe=None"),
        (lambda: check_clusters([GridEngine(cpus=1, nodes=2, nodes_per_job=2)]), "pe=None"),
        (lambda: check_clusters([GridEngine(cpus=1, run_dir="/data/a,b")]), "takes a comma for the end of a path"),
        (lambda: check_clusters([Slurm(nodes=(3, 2))]), "expected how many at most"),
        (lambda: check_clusters([GridEngine(cpus=1, memory="1 GiB")]), "memory_resource"),
        (lambda: check_clusters([Flux(memory="1 GiB")]), "Flux does not grant memory"),
        (lambda: check_clusters([Slurm(queue="a\nb")]), "expected a single line"),
    ],
)
def test_a_cluster_that_cannot_be_asked_for_is_refused(cluster: object, wrong: str) -> None:
    assert callable(cluster)
    with pytest.raises(ValueError, match=wrong):
        cluster()
