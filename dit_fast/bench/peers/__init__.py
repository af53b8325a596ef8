# SPDX-License-Identifier: Apache-2.0
"""What this package is timed beside. A peer that cannot run here says why, and is listed as absent with that reason."""
