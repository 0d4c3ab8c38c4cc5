"""External programs as tasks.

What you learn: a ``Program`` is submitted like a function; its result is a ``subprocess.CompletedProcess``. A nonzero
status is an exception with the end of stderr in it, unless ``check=False``. A program that is missing says so.

It prints: the results of two programs and the errors of three others.
"""

from executor import CAPTURE, HPCExecutor, Program, ProgramFailed, ProgramNotStarted

with HPCExecutor() as ex:
    quiet = ex.options(stdout=CAPTURE, stderr=CAPTURE)  # keep their output, and do not show it here

    # All three run at the same time. The argv is a list and never goes through a shell.
    ordered = quiet.submit(Program(["sort", "-n"], stdin="30\n4\n100\n"))
    summed = quiet.submit(Program(["awk", "BEGIN { for (i = 1; i <= 100; i++) s += i; print s }"]))
    compared = quiet.submit(Program(["sh", "-c", "test 1 -gt 2"], check=False))

    print("sort:", ordered.result().stdout.split())
    print("awk:", summed.result().stdout.strip())
    print("test, with check=False:", "status", compared.result().returncode)

    try:
        quiet.submit(Program(["sh", "-c", "echo mesh.msh: no such mesh >&2; exit 2"])).result()
    except ProgramFailed as error:
        print(f"\nProgramFailed: {error}")

    try:
        quiet.submit(Program(["sh", "-c", "kill -SEGV $$"])).result()
    except ProgramFailed as error:
        print(f"\nProgramFailed: status {error.returncode}: {error}")

    try:
        quiet.submit(Program(["awk2", "BEGIN {}"])).result()
    except ProgramNotStarted as error:
        print(f"\nProgramNotStarted: {str(error).partition(' in PATH')[0]}")

# A Program is a plain callable too: it runs here, without an executor.
print("\nhere:", Program(["echo", "hello"])().stdout.strip())
