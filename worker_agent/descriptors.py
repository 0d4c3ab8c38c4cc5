"""What an agent and its interpreters agree on before they speak: numbers of descriptors, the longest message."""

#: Tasks come from here (see ``channel``).
TASKS = 3
#: What it has taken is said here, where nobody is woken by it.
STARTS = 4
#: Outcomes go here.
REPORTS = 5
#: Of a lane, in the order in which a template gets them. Until then it has its control socket there.
QUEUES = (TASKS, STARTS, REPORTS)
#: A file with what it must know before its first task.
SETUP = 6
#: A template's orders, and what it says.
CONTROL = 7
#: An eventfd: the agent has read what the last task printed.
GO = 8

LAST = GO

#: More than any message on a queue: an inline payload, an inline function, names of stored buffers.
MESSAGE_LIMIT = 208 * 1024
