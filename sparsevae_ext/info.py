"""``python -m sparsevae_ext.info [--json]``. The function is :func:`sparsevae_ext.info`."""

from ._info import main

if __name__ == "__main__":
    raise SystemExit(main())
