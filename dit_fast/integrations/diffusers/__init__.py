# SPDX-License-Identifier: Apache-2.0
"""What dit_fast does for diffusers. Importing this imports no diffusers; its modules do."""
