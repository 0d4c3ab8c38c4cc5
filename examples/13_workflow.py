"""A workflow, written twice: data is prepared, models are trained with several parameters, all are evaluated.

What you learn: a ``Job`` collects tasks before any of them runs; a task among the arguments of another is its result.
``Job.from_file`` reads 13_workflow.toml, whose tasks are programs that write files: ``13_workflow.py train ...``.

It prints: how the tasks of both jobs end, the table of the models, and that both jobs give the same.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path


def prepare():
    noise = random.Random(1)
    return [[x / 10, 2 * x / 10 + noise.gauss(0, 1)] for x in range(100)]


def train(points, strength):
    """The slope that fits best to every other point; the larger the strength, the smaller the slope."""
    return strength, sum(x * y for x, y in points[::2]) / (sum(x * x for x, _ in points[::2]) + strength)


def evaluate(points, models):
    """How well the models fit the points that they have not seen, the best one first."""
    rows = sorted((sum((y - slope * x) ** 2 for x, y in points[1::2]), strength, slope) for strength, slope in models)
    return [f"strength {strength:3}: slope {slope:.4f}, error {error:.2f}" for error, strength, slope in rows]


def run_step(step, data, *files):
    """One program of the job file."""
    if step == "prepare":
        Path(data).write_text(json.dumps(prepare()))
    elif step == "train":
        Path(files[0]).write_text(json.dumps(train(json.loads(Path(data).read_text()), int(files[1]))))
    else:
        points, *models = [json.loads(Path(file).read_text()) for file in (data, *files)]
        print(*evaluate(points, models), sep="\n")


if len(sys.argv) > 1:
    run_step(*sys.argv[1:])
else:
    from executor import HPCExecutor, Job  # only here: the programs may run with another Python

    job = Job("workflow")
    points = job.function(prepare)
    models = [job.function(train, args=[points, strength], name=f"train {strength}") for strength in (0, 10, 100)]
    job.function(evaluate, args=[points, models], name="evaluate")
    os.chdir(Path(__file__).parent)  # the job file finds its programs where it is submitted
    with tempfile.TemporaryDirectory() as folder, HPCExecutor() as ex:
        functions, programs = ex.submit_job(job), ex.options(cwd=folder).submit_job(Job.from_file("13_workflow.toml"))
        print([future.name for future in functions], programs.wait(), dict(programs.counts()))
        table = functions.futures["evaluate"].result()
        print(*table, sep="\n")
        print("the same:", Path(folder, "workflow", "table.txt").read_text().splitlines() == table)
