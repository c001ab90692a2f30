"""`python -m compiler` is the `secateur` command."""

from compiler.cli import main

if __name__ == "__main__":
    main()
