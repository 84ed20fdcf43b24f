"""`python -m pyllamacpu` is the command `pyllamacpu`."""

from __future__ import annotations

from pyllamacpu.cli.interrupts import TYPE_CHECKING, interrupts_leave, leave

if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        interrupts_leave()
        from pyllamacpu.cli.main import main as run
    except KeyboardInterrupt:
        leave()
    run()


if __name__ == "__main__":
    main()
