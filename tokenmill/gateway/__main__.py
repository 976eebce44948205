"""``python -m tokenmill.gateway``: the process entry point."""

import sys

from tokenmill.gateway.server import main

if __name__ == "__main__":
    sys.exit(main())
