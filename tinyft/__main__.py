"""`python -m tinyft`, and the command `tinyft`."""

import sys


def main() -> int:
    """Run one command; its exit code. Ctrl-C while commands are imported is told as later."""
    try:
        from tinyft.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("tinyft: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
