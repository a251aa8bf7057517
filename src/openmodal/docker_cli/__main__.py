"""`python -m openmodal.docker_cli`: the command where no script of that name is on PATH."""

from openmodal.docker_cli import main

if __name__ == "__main__":
    main()
