"""``python -m executor`` is ``hpc-executor``."""

from executor.cli.__main__ import main

if __name__ == "__main__":
    main()
