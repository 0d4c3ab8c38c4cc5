"""Jobs: tasks with dependencies that are described before any of them runs, and what becomes of them."""
