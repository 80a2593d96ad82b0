"""`python -m objserver` is the `objserver` command."""

from objserver.cli.main import main

if __name__ == "__main__":
    main()
