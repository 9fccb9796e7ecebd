"""`python -m convrec_r1`. What it does: cli.py."""

from convrec_r1.cli import main

if __name__ == "__main__":
    main()
