"""An external program as a callable. Called, it runs here; submitted, it is executed on a node."""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import os
import reprlib
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.errors import ProgramFailed, ProgramNotStarted

__all__ = ["Program", "check_completed", "explain_not_started"]

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Program:
    """A program with its arguments; equal, hashable, and picklable.

    :param argv: list or tuple of str and PathLike, the program first. It is never given to a shell. Without a
        slash the program is looked up in PATH where it runs.
    :param stdin: None (default) for an empty stdin; str (sent as UTF-8) or bytes for the text itself; a
        PathLike for a file to read, whose relative path is resolved now, as ``open()`` would do it.
    :param check: True (default): a nonzero status is a :class:`ProgramFailed`; False: it is a result like any
        other.
    :raises TypeError, ValueError: an argument that no program can get.
    """

    argv: tuple[str, ...]
    stdin: str | bytes | Path | None
    check: bool

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: str | bytes | os.PathLike[str] | None = None,
        check: bool = True,
    ) -> None:
        if not isinstance(check, bool):
            raise TypeError(f"check={_repr.repr(check)}: expected True or False")
        object.__setattr__(self, "argv", _read_argv(argv))
        object.__setattr__(self, "stdin", _read_stdin(stdin))
        object.__setattr__(self, "check", check)

    def __repr__(self) -> str:
        stdin = "" if self.stdin is None else f", stdin={_repr.repr(self.stdin)}"
        return f"Program({list(self.argv)!r}{stdin}{'' if self.check else ', check=False'})"

    def __call__(self) -> subprocess.CompletedProcess[str]:
        """Run it here, in this process's directory and environment, and wait for it.

        Returns a ``CompletedProcess`` as :func:`subprocess.run` does, with ``stdout`` and ``stderr`` as str:
        UTF-8, other bytes replaced, line ends as they came. ``returncode`` is negative if a signal ended it.

        :raises ProgramFailed: ``check`` is true and the status is not zero.
        :raises ProgramNotStarted: there is no such program, or it cannot be executed.
        :raises OSError: the file for stdin cannot be read.
        """
        with self._open_stdin() as source:
            completed = self._run(source)
        stdout, stderr = (str(stream, "utf-8", "replace") for stream in (completed.stdout, completed.stderr))
        return check_completed(
            self, subprocess.CompletedProcess(list(self.argv), completed.returncode, stdout, stderr)
        )

    def stdin_bytes(self) -> bytes | None:
        """The bytes for the program's stdin, or None if it is empty or a file."""
        if isinstance(self.stdin, str):
            return self.stdin.encode()
        return self.stdin if isinstance(self.stdin, bytes) else None

    @contextlib.contextmanager
    def _open_stdin(self) -> Iterator[int]:
        if isinstance(self.stdin, Path):
            with open(self.stdin, "rb") as file:
                yield file.fileno()
        else:
            yield subprocess.DEVNULL

    def _run(self, source: int) -> subprocess.CompletedProcess[bytes]:
        text = self.stdin_bytes()
        try:
            if text is not None:
                return subprocess.run(self.argv, input=text, capture_output=True, check=False)
            return subprocess.run(self.argv, stdin=source, capture_output=True, check=False)
        except OSError as error:
            number = error.errno or 0
            sentence = explain_not_started(self.argv[0], number, _current_directory(), os.environ.get("PATH"))
            raise ProgramNotStarted(number, sentence, self.argv[0]) from None


def check_completed(
    program: Program, completed: subprocess.CompletedProcess[str]
) -> subprocess.CompletedProcess[str]:
    """``completed`` itself, or :class:`ProgramFailed` for a nonzero status if ``program.check`` is true."""
    if program.check and completed.returncode != 0:
        raise ProgramFailed(completed.returncode, list(program.argv), completed.stdout, completed.stderr)
    return completed


# ---- reading the arguments ---------------------------------------------------------------------------------


def _read_argv(argv: object) -> tuple[str, ...]:
    if isinstance(argv, str):
        raise TypeError(_why_no_string(argv))
    if not isinstance(argv, list | tuple):
        raise TypeError(f"argv={_repr.repr(argv)}: expected a list or tuple, such as Program(['ls', '-l'])")
    words = tuple(_read_argument(position, value) for position, value in enumerate(argv))
    if not words or not words[0]:
        raise ValueError(f"argv={_repr.repr(argv)} has no program in it; write Program(['ls', '-l'])")
    return words


def _read_argument(position: int, value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        shown = _repr.repr(value)
        remedy = "os.fsdecode(x)" if isinstance(value, bytes) else "str(x)"
        raise TypeError(
            f"argv[{position}] is {shown} ({type(value).__name__}): expected str or PathLike; write {remedy}"
        )
    text = os.fsdecode(value)
    if "\0" in text:
        raise ValueError(
            f"argv[{position}] is {_repr.repr(text)}: no argument can hold a NUL character; remove it"
        )
    return str(text)


def _why_no_string(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:  # an open quote
        words = text.split()
    example = '["' + '", "'.join(words or ["ls", "-l"]) + '"]'
    return (
        f"argv is the string {_repr.repr(text)}, and a Program is never given to a shell; "
        f'write Program({example}), or, if you want a shell, Program(["sh", "-c", ...])'
    )


def _read_stdin(stdin: object) -> str | bytes | Path | None:
    if isinstance(stdin, str):
        stdin.encode()  # a lone surrogate cannot be sent: the ValueError comes here rather than on the node
    if stdin is None or isinstance(stdin, str | bytes):
        return stdin
    if isinstance(stdin, os.PathLike):
        return _read_stdin_file(os.fsdecode(stdin))
    kind = type(stdin).__name__
    raise TypeError(
        f"stdin={_repr.repr(stdin)} ({kind}): expected text (str, bytes), a file (Path('in.txt')), or None"
    )


def _read_stdin_file(path: str) -> Path:
    if "\0" in path:
        raise ValueError(f"stdin={_repr.repr(path)}: no path can hold a NUL character; remove it")
    return Path(path).absolute()


# ---- why a program was not started -------------------------------------------------------------------------


def explain_not_started(argv0: str, error_number: int, cwd: str, path: str | None) -> str:
    """A sentence that says why ``argv0`` could not be executed in ``cwd``, and what to do.

    ``error_number`` is the errno of ``execve``; ``path`` the value of PATH that was searched, or None if it
    was not set. Looks at the files, so it is to be called where they can be seen; it never raises.
    """
    found = _find(argv0, cwd, path)
    if error_number == errno.ENOENT:
        reason = _why_missing(argv0, cwd, path) if found is None else _why_no_interpreter(found)
    elif error_number == errno.EACCES:
        reason = _why_no_permission(argv0, found)
    elif error_number == errno.ENOEXEC:
        reason = _why_no_format(argv0, found)
    else:
        reason = _OTHER_REASONS.get(error_number) or f"{os.strerror(error_number)} (errno {error_number})"
    return f"cannot start {argv0!r} in the directory {cwd!r}: {reason}"


_OTHER_REASONS = {
    errno.ENOTDIR: "a part of its path is a file and not a directory; correct the path",
    errno.E2BIG: "its arguments and environment are too large for the system; hand lists over in a file",
    errno.ELOOP: "its path has too many symbolic links, perhaps in a circle; correct the links",
    errno.ETXTBSY: "its file is open for writing; close it first",
}


def _find(argv0: str, cwd: str, path: str | None) -> str | None:
    """The file that ``execvp`` would try: the first executable one, else the first that exists."""
    files = [file for file in _candidates(argv0, cwd, path) if os.path.exists(file)]
    return next((file for file in files if _is_executable(file)), files[0] if files else None)


def _candidates(argv0: str, cwd: str, path: str | None) -> list[str]:
    if "/" in argv0:
        return [os.path.join(cwd, argv0)]
    return [os.path.join(directory, argv0) for directory in _search_path(cwd, path)]


def _search_path(cwd: str, path: str | None) -> list[str]:
    # An empty entry of PATH is the current directory; without PATH, os.execvp searches os.defpath.
    return [
        os.path.join(cwd, directory) for directory in (os.defpath if path is None else path).split(os.pathsep)
    ]


def _is_executable(file: str) -> bool:
    return os.path.isfile(file) and os.access(file, os.X_OK)


def _why_missing(argv0: str, cwd: str, path: str | None) -> str:
    file = os.path.join(cwd, argv0)
    if "/" not in argv0:
        searched = f"in PATH ({path})" if path is not None else f"in {os.defpath} (PATH is not set)"
        return f"there is no such program {searched}.{_hint_for_name(argv0, cwd, path)}"
    if os.path.islink(file):
        return f"it is a symbolic link to {os.readlink(file)!r}, which does not exist"
    if argv0.startswith("~"):
        return "there is no such file. Only a shell replaces '~'; use os.path.expanduser()"
    return f"there is no such file.{_hint_for_name(argv0, cwd, path)}"


def _hint_for_name(argv0: str, cwd: str, path: str | None) -> str:
    here = os.path.join(cwd, argv0)
    if "/" not in argv0 and _is_executable(here):
        return f" Did you mean './{argv0}'?"
    if "/" not in argv0 and os.path.isfile(here):
        return f" The file './{argv0}' is not executable; chmod +x it and name it './{argv0}'."
    words = argv0.split()
    if len(words) > 1 and _find(words[0], cwd, path):
        return f" Each argument is an item of its own: did you mean Program({words!r})?"
    return _hint_for_nearest(argv0, cwd, path)


def _hint_for_nearest(argv0: str, cwd: str, path: str | None) -> str:
    folder, name = os.path.split(argv0)
    known = _programs(cwd, path) if not folder else _names(os.path.join(cwd, folder))
    nearest = difflib.get_close_matches(name, known, n=2, cutoff=0.75)
    return (
        f" Did you mean {' or '.join(repr(os.path.join(folder, each)) for each in nearest)}?"
        if nearest
        else ""
    )


def _programs(cwd: str, path: str | None) -> set[str]:
    in_path = {name for directory in _search_path(cwd, path) for name in _names(directory)}
    return in_path | {f"./{name}" for name in _names(cwd) if _is_executable(os.path.join(cwd, name))}


def _names(directory: str, *, most: int = 5000) -> Iterable[str]:
    # An error message is not worth the listing of a directory with a million results in it.
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in itertools.islice(entries, most)]
    except OSError:
        return []


def _why_no_permission(argv0: str, found: str | None) -> str:
    if found is None:
        where = "its path" if "/" in argv0 else "PATH"
        return (
            f"it was not found, and permission was denied to search a directory of {where}; check with ls -ld"
        )
    if os.path.isdir(found):
        return f"{found!r} is a directory; name the program in it"
    if not os.access(found, os.X_OK):
        return f"{found!r} is not executable; chmod +x {shlex.quote(found)}"
    interpreter = _interpreter(found)
    if interpreter and not os.access(interpreter, os.X_OK):
        return f"the interpreter {interpreter!r} in the first line of {found!r} is not executable"
    return f"permission was denied for {found!r}; perhaps its file system is mounted with noexec"


def _why_no_format(argv0: str, found: str | None) -> str:
    start = _first_bytes(found)
    if start.startswith(b"\x7fELF"):
        return f"Exec format error: {found!r} is damaged, or built for another machine; build it for this one"
    return (
        f"Exec format error: {found or argv0!r} is empty, or has no valid interpreter line; "
        f"begin a script with '#!/bin/sh' or the like, or write Program(['sh', {argv0!r}, ...])"
    )


def _why_no_interpreter(found: str) -> str:
    interpreter = _interpreter(found)
    if interpreter is None:
        return f"{found!r} exists, but the loader that it needs does not; is it built for another system?"
    if interpreter.endswith("\r"):
        return (
            f"the first line of {found!r} ends in a carriage return, as on Windows; convert it with dos2unix"
        )
    return (
        f"{found!r} exists, but the interpreter {interpreter!r} in its first line does not; correct that line"
    )


def _interpreter(file: str) -> str | None:
    """The interpreter that the first line of a script names, or None if it is no script."""
    line = _first_bytes(file).split(b"\n")[0]
    words = line[2:].strip(b" \t").replace(b"\t", b" ").split(b" ")
    return os.fsdecode(words[0]) if line.startswith(b"#!") and words[0] else None


def _first_bytes(file: str | None) -> bytes:
    # Only of a regular file: to read from a pipe or a device could block for ever. 256 is what the kernel
    # looks at.
    try:
        if file is None or not os.path.isfile(file):
            return b""
        with open(file, "rb") as stream:
            return stream.read(256)
    except OSError:
        return b""


def _current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "(deleted)"
