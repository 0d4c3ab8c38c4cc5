"""concurrent.futures for the cluster: ``from executor import HPCExecutor, Program``."""

from executor.errors import (
    AgentFailed,
    EnvironmentFailed,
    ExecutorTerminated,
    InitializerFailed,
    ListenError,
    NetworkUnsafe,
    OptionTypeError,
    OptionValueError,
    ProgramFailed,
    ProgramNotStarted,
    RemoteError,
    SerializationError,
    TaskDied,
    TaskKilled,
    TaskLost,
    TaskTimeout,
)
from executor.executor import HPCExecutor
from executor.future import TaskFuture, Usage
from executor.options import CAPTURE, DEVNULL, FORWARD
from executor.program import Program

__all__ = [
    "CAPTURE", "DEVNULL", "FORWARD", "AgentFailed", "EnvironmentFailed", "ExecutorTerminated", "HPCExecutor",
    "InitializerFailed", "ListenError", "NetworkUnsafe", "OptionTypeError", "OptionValueError", "Program",
    "ProgramFailed", "ProgramNotStarted", "RemoteError", "SerializationError", "TaskDied", "TaskFuture", "TaskKilled",
    "TaskLost", "TaskTimeout", "Usage",
]  # fmt: skip
__version__ = "0.1.0"
