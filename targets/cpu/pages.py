"""Memory in large pages for the processes that measure.

Weights are read as streams through memory: with pages of 2 MiB instead of 4 KiB these run 1.1 to
1.3 times as fast (docs/facts.md). Linux gives large pages on request only where its setting is
"madvise", the usual one; the C library asks for them when its tunable says so.
"""

from __future__ import annotations

# glibc 2.35; older ones and other C libraries ignore it
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
