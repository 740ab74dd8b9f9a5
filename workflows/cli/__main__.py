"""`python -m workflows.cli`: the same as `raverse`."""

from workflows.cli.app import main

if __name__ == "__main__":
    main()
