"""The command line ``hpc-executor``: one file for each command, and what they say it with."""
