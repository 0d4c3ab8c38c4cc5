"""The process on a node that runs tasks for an HPCExecutor. A leaf: it imports nothing of ``executor``.

Light on purpose: interpreters that run user code load ``worker_agent.template`` and ``worker_agent.runner`` from here.
"""
