"""``python -m hvd_compress.cli`` is ``hvd-compress``."""

from hvd_compress.cli import main

if __name__ == "__main__":
    main()
