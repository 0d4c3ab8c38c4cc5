"""concurrent.futures for the cluster: ``from executor import HPCExecutor, Program``."""

from executor.asynchronous import as_completed_async
from executor.batch.array import BatchArray, BatchArrayHandle
from executor.batch.handle import BatchHandle
from executor.batch.job import BatchJob
from executor.batch.native import submit_natively
from executor.batch.schedulers import get_scheduler
from executor.batch.states import JobStatus
from executor.clusters import PBS, Flux, GridEngine, Slurm
from executor.counts import Counts
from executor.errors import (
    AgentFailed,
    BatchCommandFailed,
    DependencyFailed,
    EnvironmentFailed,
    ExecutorTerminated,
    InitializerFailed,
    JobError,
    JobFileError,
    ListenError,
    NetworkUnsafe,
    OptionTypeError,
    OptionValueError,
    OutputMissing,
    ProgramFailed,
    ProgramNotStarted,
    RemoteError,
    SerializationError,
    StreamError,
    TaskDied,
    TaskKilled,
    TaskLost,
    TaskOutOfMemory,
    TaskTimeout,
    UnsatisfiableRequest,
)
from executor.events import Event
from executor.executor import HPCExecutor
from executor.files import OutputFile
from executor.future import TaskFuture, Usage
from executor.jobs.job import Job
from executor.jobs.pipeline import Pipeline
from executor.jobs.stream import StreamDirectory
from executor.jobs.submitted import SubmittedJob
from executor.launched import Local, Ssh
from executor.options import CAPTURE, DEVNULL, FORWARD
from executor.program import Program
from executor.progress import ProgressBar, track
from executor.python_env import PythonEnv
from executor.report.report import Report
from executor.resources import Resources

__all__ = [
    "CAPTURE", "DEVNULL", "FORWARD", "PBS", "AgentFailed", "BatchArray", "BatchArrayHandle", "BatchCommandFailed",
    "BatchHandle", "BatchJob", "Counts", "DependencyFailed", "EnvironmentFailed", "Event", "ExecutorTerminated",
    "Flux", "GridEngine", "HPCExecutor", "InitializerFailed", "Job", "JobError", "JobFileError", "JobStatus",
    "ListenError", "Local", "NetworkUnsafe", "OptionTypeError", "OptionValueError", "OutputFile", "OutputMissing",
    "Pipeline", "Program", "ProgramFailed", "ProgramNotStarted", "ProgressBar", "PythonEnv", "RemoteError", "Report",
    "Resources", "SerializationError", "Slurm", "Ssh", "StreamDirectory", "StreamError", "SubmittedJob", "TaskDied",
    "TaskFuture", "TaskKilled", "TaskLost", "TaskOutOfMemory", "TaskTimeout", "UnsatisfiableRequest", "Usage",
    "as_completed_async", "get_scheduler", "submit_natively", "track",
]  # fmt: skip
__version__ = "0.1.0"
