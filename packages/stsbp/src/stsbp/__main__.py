"""`python -m stsbp` is the command `stsbp`."""

from stsbp.cli import main

if __name__ == "__main__":
    main()
