#!/usr/bin/env python3
"""Every job around this checkout, one command each: set-up, demo, tests, server, lint.

Runs under any Python from 3.10 on: it makes `.venv` and continues there.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - said before the first import that an older Python cannot read
    sys.exit("TokenOpt needs Python 3.10 or newer; this is Python %d.%d." % sys.version_info[:2])  # noqa: UP031

from devtools.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
