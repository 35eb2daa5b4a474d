"""`python -m medssl` is the `medssl` command."""

from medssl.cli import main

if __name__ == "__main__":
    main()
