import errno
import os
import pickle
import signal
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from executor.errors import ProgramFailed, ProgramNotStarted
from executor.program import Program, check_completed, explain_not_started

PYTHON = [sys.executable, "-S", "-c"]
COPY = [*PYTHON, "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"]


def write(path, text, *, mode=0o755):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bin_here(here, monkeypatch):
    """A directory that is all of PATH."""
    (here / "bin").mkdir()
    monkeypatch.setenv("PATH", str(here / "bin"))
    return here / "bin"


def not_started(*argv):
    with pytest.raises(ProgramNotStarted) as caught:
        Program(list(argv))()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.errno, copy.filename) == (str(caught.value), caught.value.errno, argv[0])
    return caught.value


# ---- the value


def test_programs_are_values():
    program = Program(["cat", Path("a/b")], stdin="text", check=False)
    assert program.argv == ("cat", "a/b")
    assert program == Program(("cat", "a/b"), stdin="text", check=False) != Program(["cat", "a/b"])
    assert hash(pickle.loads(pickle.dumps(program))) == hash(program)
    assert pickle.loads(pickle.dumps(program)) == program
    with pytest.raises(AttributeError):
        program.check = True


def test_the_repr_shows_what_differs_from_the_defaults():
    assert repr(Program(["ls", "-l"])) == "Program(['ls', '-l'])"
    assert repr(Program(["x"], stdin=b"y", check=False)) == "Program(['x'], stdin=b'y', check=False)"
    assert len(repr(Program(["x"], stdin="y" * 10**6))) < 200


def test_a_string_is_refused_with_the_list_to_write():
    with pytest.raises(TypeError, match=r'never given to a shell; write Program\(\["ls", "-l"\]\)'):
        Program("ls -l")


@pytest.mark.parametrize("text", ["", "an 'open quote"])
def test_a_string_that_no_shell_would_take_is_refused_too(text):
    with pytest.raises(TypeError, match="never given to a shell"):
        Program(text)


@pytest.mark.parametrize("argv", [None, Path("ls"), {"ls"}, b"ls", iter(["ls"])])
def test_only_lists_and_tuples_are_command_lines(argv):
    with pytest.raises(TypeError, match="expected a list or tuple"):
        Program(argv)


@pytest.mark.parametrize("wrong", [5, 0.5, None, True, ["x"]])
def test_an_argument_that_is_no_text_is_refused_with_position_value_and_remedy(wrong):
    with pytest.raises(TypeError) as caught:
        Program(["x", "--n", wrong])
    assert f"argv[2] is {wrong!r}" in str(caught.value)
    assert "str(x)" in str(caught.value)


def test_bytes_are_refused_with_the_function_that_decodes_them():
    with pytest.raises(TypeError, match=r"os\.fsdecode\(x\)"):
        Program(["x", b"y"])


@pytest.mark.parametrize("argv", [[], (), [""], ["x\0"], ["x", "y\0z"]])
def test_a_command_line_that_cannot_exist_is_refused(argv):
    with pytest.raises(ValueError, match="write Program|NUL"):
        Program(argv)


@pytest.mark.parametrize("stdin", [5, -3, bytearray(b"x"), True, sys.stdin])
def test_only_text_and_paths_are_stdin(stdin):
    with pytest.raises(TypeError, match="stdin="):
        Program(["x"], stdin=stdin)


def test_stdin_that_cannot_be_encoded_or_opened_is_refused_at_once():
    with pytest.raises(ValueError, match="surrogates"):
        Program(["x"], stdin="\udc80")
    with pytest.raises(ValueError, match="NUL"):
        Program(["x"], stdin=Path("a\0b"))


def test_check_is_a_bool():
    with pytest.raises(TypeError, match="check=1"):
        Program(["x"], check=1)


# ---- a run


def test_a_call_runs_the_program_and_returns_its_streams():
    argv = [*PYTHON, "import sys; print('out'); print('err', file=sys.stderr)"]
    completed = Program(argv)()
    assert vars(completed) == vars(CompletedProcess(argv, 0, "out\n", "err\n"))


@pytest.mark.parametrize("text", ["", "grüße\r\n", "x" * 300_000])
def test_stdin_is_the_text_given_as_str_or_bytes(text):
    assert Program(COPY, stdin=text)().stdout == text
    assert Program(COPY, stdin=text.encode())().stdout == text
    assert Program(COPY, stdin=text).stdin_bytes() == text.encode()


def test_stdin_is_the_file_given_by_its_path(here, monkeypatch):
    (here / "in.txt").write_text("from a file")
    program = Program(COPY, stdin=Path("in.txt"))
    monkeypatch.chdir("/")
    assert program.stdin == here / "in.txt"
    assert program.stdin_bytes() is None
    assert program().stdout == "from a file"


def test_a_missing_file_for_stdin_is_not_a_missing_program(here):
    with pytest.raises(FileNotFoundError) as caught:
        Program(COPY, stdin=here / "nowhere")()
    assert not isinstance(caught.value, ProgramNotStarted)
    assert caught.value.filename == str(here / "nowhere") or caught.value.filename == here / "nowhere"


def test_without_stdin_the_program_reads_nothing():
    assert Program(COPY)().stdout == ""


def test_bytes_that_are_not_utf_8_are_replaced():
    argv = [*PYTHON, r"import sys; sys.stdout.buffer.write(b'a\xffb')"]
    assert Program(argv)().stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_a_nonzero_status_raises_with_everything_about_it():
    argv = [*PYTHON, "import sys; print('some'); sys.exit('the reason')"]
    with pytest.raises(ProgramFailed, match="exited with status 1") as caught:
        Program(argv)()
    error = caught.value
    assert (error.returncode, error.cmd, error.stdout, error.stderr) == (1, argv, "some\n", "the reason\n")
    assert "the reason" in str(error)


def test_a_signal_is_a_negative_status():
    argv = [*PYTHON, "import os; os.kill(os.getpid(), 9)"]
    assert Program(argv, check=False)().returncode == -signal.SIGKILL
    with pytest.raises(ProgramFailed, match="SIGKILL"):
        Program(argv)()


def test_check_completed_is_the_one_that_decides():
    failed = CompletedProcess(["x"], 3, "", "")
    assert check_completed(Program(["x"], check=False), failed) is failed
    with pytest.raises(ProgramFailed):
        check_completed(Program(["x"]), failed)


# ---- programs that do not start


def test_a_missing_program_names_the_path_that_was_searched(bin_here):
    error = not_started("no-such-program")
    assert error.missing
    assert str(error) == (
        f"cannot start 'no-such-program' in the directory {str(bin_here.parent)!r}: "
        f"there is no such program in PATH ({bin_here})."
    )


def test_a_program_of_the_current_directory_is_recognised(bin_here):
    write(bin_here.parent / "solver", "#!/bin/sh\n")
    assert "Did you mean './solver'?" in str(not_started("solver"))


def test_a_program_of_the_current_directory_that_is_not_executable_is_recognised(bin_here):
    write(bin_here.parent / "solver", "#!/bin/sh\n", mode=0o644)
    assert "'./solver' is not executable; chmod +x" in str(not_started("solver"))


def test_a_misspelt_program_gets_the_nearest_names(bin_here):
    write(bin_here / "mesher", "")
    write(bin_here.parent / "mesher.py", "#!/bin/sh\n")
    assert "Did you mean 'mesher'" in str(not_started("meshr"))
    (bin_here.parent / "data").mkdir()
    write(bin_here.parent / "data" / "solve.sh", "#!/bin/sh\n")
    assert "Did you mean 'data/solve.sh'?" in str(not_started("data/solv.sh"))


def test_a_command_line_in_one_argument_is_recognised(bin_here):
    write(bin_here / "ls", "#!/bin/sh\n")
    assert "Program(['ls', '-l'])?" in str(not_started("ls -l"))


def test_a_home_directory_is_not_replaced(here):
    assert "os.path.expanduser()" in str(not_started("~/bin/solver"))


def test_a_link_to_nowhere_names_where(here):
    (here / "link").symlink_to("nowhere")
    assert "symbolic link to 'nowhere', which does not exist" in str(not_started("./link"))


def test_a_file_that_is_not_executable_is_named_with_the_remedy(bin_here):
    file = write(bin_here / "solver", "#!/bin/sh\n", mode=0o644)
    for argv0 in (str(file), "solver", "bin/solver"):
        error = not_started(argv0)
        assert error.errno == errno.EACCES
        assert f"is not executable; chmod +x {file}" in str(error)


def test_a_directory_is_no_program(here):
    assert "is a directory" in str(not_started(str(here)))


def test_a_script_without_an_interpreter_line_is_recognised(here):
    write(here / "script", "echo hello\n")
    error = not_started("./script")
    assert error.errno == errno.ENOEXEC
    assert "no valid interpreter line; begin a script with '#!/bin/sh'" in str(error)


def test_a_program_for_another_machine_is_recognised(here):
    write(here / "foreign", b"\x7fELF" + bytes(60))
    assert "another machine" in str(not_started("./foreign"))


@pytest.mark.parametrize("line", ["#!/no/such/shell -e\n", "#! /no/such/shell\n", "#!/no/such/shell"])
def test_a_script_whose_interpreter_is_missing_names_it(bin_here, line):
    write(bin_here / "script", line)
    for argv0 in ("script", str(bin_here / "script")):
        assert "the interpreter '/no/such/shell' in its first line does not" in str(not_started(argv0))


def test_a_script_with_windows_line_ends_is_recognised(here):
    write(here / "script", "#!/bin/sh\r\necho\r\n")
    assert "dos2unix" in str(not_started("./script"))


def test_a_script_whose_interpreter_is_not_executable_names_it(here):
    plain = write(here / "plain", "", mode=0o644)
    write(here / "script", f"#!{plain}\n")
    assert f"the interpreter {str(plain)!r}" in str(not_started("./script"))


def test_a_file_in_the_place_of_a_directory_is_recognised(here):
    write(here / "file", "")
    error = not_started("./file/x")
    assert error.errno == errno.ENOTDIR
    assert "is a file and not a directory" in str(error)


def test_arguments_that_are_too_long_are_recognised():
    with pytest.raises(ProgramNotStarted, match="too large for the system") as caught:
        Program(["true", "x" * 10**7])()
    assert caught.value.errno == errno.E2BIG


def test_a_program_does_not_start_in_a_directory_that_is_gone(here, monkeypatch):
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "in the directory '(deleted)'" in str(not_started("./x"))


def explain(number, argv0="x", cwd="/nonexistent", path="/nonexistent"):
    return explain_not_started(argv0, number, cwd, path)


def test_what_cannot_be_seen_here_is_explained_by_the_number_alone(here):
    assert "permission was denied to search a directory of PATH" in explain(errno.EACCES)
    assert "permission was denied to search a directory of its path" in explain(errno.EACCES, "/no/x")
    assert f"{os.strerror(errno.ENOMEM)} (errno {errno.ENOMEM})" in explain(errno.ENOMEM)
    assert "'x' is empty, or has no valid interpreter line" in explain(errno.ENOEXEC)


def test_what_looks_right_here_is_explained_by_what_is_hidden():
    assert "mounted with noexec" in explain(errno.EACCES, sys.executable)
    assert "loader that it needs" in explain(errno.ENOENT, sys.executable)


def test_without_path_the_default_of_the_system_is_searched():
    assert f"in {os.defpath} (PATH is not set)" in explain(errno.ENOENT, path=None)


def test_an_empty_entry_of_path_is_the_current_directory(here):
    write(here / "x", "#!/no/such/shell\n")
    assert "'/no/such/shell'" in explain(errno.ENOENT, cwd=str(here), path="/nonexistent:")


def test_a_pipe_is_not_read_for_an_explanation(here):
    """Opening it would block until somebody writes."""
    os.mkfifo(here / "pipe", 0o755)
    assert "no valid interpreter line" in explain(errno.ENOEXEC, "./pipe", cwd=str(here))
