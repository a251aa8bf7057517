"""`python -m openmodal`: the command where no script of that name is on PATH."""

from openmodal.cli import main

if __name__ == "__main__":
    main()
