"""``python -P blind_agent.py FILE``: ``python -m worker_agent FILE`` on a machine that has no file of the client's.

On the machine of a test agents see all that their client sees. This one finds none of the files that it is asked for.
"""

from __future__ import annotations

import errno
from typing import NoReturn

from worker_agent import __main__ as agent
from worker_agent import trees


def not_here(path: str) -> NoReturn:
    """In place of :func:`worker_agent.trees.identity`."""
    raise FileNotFoundError(errno.ENOENT, "this agent is blind", path)


if __name__ == "__main__":
    trees.identity = not_here
    agent.main()
