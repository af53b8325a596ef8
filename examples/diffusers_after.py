# SPDX-License-Identifier: Apache-2.0
"""diffusers_before.py with two lines more: the import, and the one that patches the pipeline's transformer."""

import torch
from their_pipeline import tiny_pipeline

import dit_fast

pipe = tiny_pipeline()
print(dit_fast.patch(pipe.transformer))

images = pipe(
    class_labels=[207, 360], num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="np"
).images
for image in images:
    print("image", image.shape, *(f"{value:.4f}" for value in (image.mean(), image.std())))
