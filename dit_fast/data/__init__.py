# SPDX-License-Identifier: Apache-2.0
"""What training reads: `open_source` for a folder of images, a Hugging Face dataset, a latent cache or the digits.

All are a `Source`: `source.example(index, generator)` gives (C, H, W) float32 and a label. A source draws all its
chance, the flip and a latent's place in its posterior, from the generator that it is given and keeps no state, so an
example depends on its index and the generator's seed only, whatever process asks. Sources pickle; what they open, each
process opens for itself. A source of your own needs what the protocol lists, no base class.

`encode` (`dit-fast encode`) makes a latent cache, once; reading it needs no VAE.
"""

from .encode import encode
from .folder import FolderSource
from .latents import LatentSource
from .open import open_source
from .source import Source
from .tensors import TensorSource, digits
from .vae import fingerprint, load_vae

__all__ = [
    "FolderSource",
    "LatentSource",
    "Source",
    "TensorSource",
    "digits",
    "encode",
    "fingerprint",
    "load_vae",
    "open_source",
]
