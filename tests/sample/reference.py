# SPDX-License-Identifier: Apache-2.0
"""What a sampler must compute, through the loops of `dit_fast.diffusion`, one image after another."""

import torch

from dit_fast.diffusion import create_diffusion, create_flow, with_guidance
from dit_fast.sample.noise import stream_seed


def one_image(
    model, label, k, *, method="ddpm", steps=4, scale=1.0, channels=3, seed=0, size=(8, 8), clip=False, eta=0.0
):
    """Image k, (1, C, H, W), by the plain loop with a generator of its own."""
    dtype = model.pos_embed.dtype
    generator = torch.Generator().manual_seed(stream_seed(seed, k))
    noise = torch.randn(1, model.in_channels, *size, generator=generator)
    if dtype == torch.float64:  # the same numbers: the loop must not draw others in its own dtype
        noise = noise.double()
    conditional = model.num_classes > 0

    def predict(x, t, *y):
        return model(x.to(dtype), t, *y)

    call = with_guidance(predict, scale, model.num_classes, channels) if scale != 1 else predict
    kwargs = {"y": torch.tensor([label])} if conditional else {}
    if scale == 1 and conditional:
        call, kwargs = (lambda x, t: predict(x, t, torch.tensor([label]))), {}
    with torch.no_grad():
        if method in ("euler", "heun"):
            return create_flow().ode_sample_loop(call, noise.shape, noise, steps, method, kwargs)
        diffusion = create_diffusion(str(steps), learn_sigma=model.learn_sigma)
        x = noise
        for i in range(steps - 1, -1, -1):
            t = torch.tensor([i])
            if method == "ddim":
                fresh = torch.randn(noise.shape, generator=generator) if eta else None
                x = diffusion.ddim_sample(call, x, t, clip, model_kwargs=kwargs, eta=eta, noise=fresh)["sample"]
            else:
                fresh = torch.randn(noise.shape, generator=generator)
                x = diffusion.p_sample(call, x, t, clip, model_kwargs=kwargs, noise=fresh)["sample"]
        return x


def images(model, labels, numbers=None, **options):
    numbers = range(len(labels)) if numbers is None else numbers
    return torch.cat([one_image(model, label, k, **options) for label, k in zip(labels, numbers, strict=True)])
