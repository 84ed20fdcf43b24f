"""`python -m pyllamacpu` is the command `pyllamacpu`."""

from pyllamacpu.cli.main import main

if __name__ == "__main__":
    main()
