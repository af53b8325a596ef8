# SPDX-License-Identifier: Apache-2.0
"""A diffusers pipeline as people have it. diffusers_after.py is the same with two more lines."""

import torch
from their_pipeline import tiny_pipeline

pipe = tiny_pipeline()

images = pipe(
    class_labels=[207, 360], num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="np"
).images
for image in images:
    print("image", image.shape, *(f"{value:.4f}" for value in (image.mean(), image.std())))
