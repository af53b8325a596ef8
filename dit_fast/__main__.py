# SPDX-License-Identifier: Apache-2.0
"""`python -m dit_fast` is `dit-fast`."""

import sys

from dit_fast.cli import main

sys.exit(main())
