"""How much memory this process has taken at most."""

from __future__ import annotations

import sys

__all__ = ["peak_memory_mib"]


def peak_memory_mib() -> float | None:
    """Return the process's peak resident memory so far in MiB, None where it is not known.

    On Linux it is VmHWM, which starts anew at exec; getrusage's ru_maxrss does not, so a child
    would report the parent's peak at the time of the fork when that was higher.
    """
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
