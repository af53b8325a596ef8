# SPDX-License-Identifier: Apache-2.0
"""What needs the repository: results, the README's tables, all that only a GPU can tell. The rest is dit_fast.bench."""
