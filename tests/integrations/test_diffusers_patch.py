# SPDX-License-Identifier: Apache-2.0
"""Patched diffusers models in the conditions people run them in, and blocks that must be left alone."""

import copy
import inspect

import diffusers
import pytest
import torch
from diffusers.models import attention, normalization
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.transformers import transformer_flux
from torch import nn

import dit_fast
from dit_fast import ops
from dit_fast.integrations.diffusers import document, fingerprints
from dit_fast.integrations.diffusers.known import KNOWN
from dit_fast.integrations.diffusers.recipes import TABLE
from dit_fast.integrations.diffusers.table import Fused
from dit_fast.parity import compare

from .diffusers_case import PART, STEPS
from .diffusers_models import CASES
from .diffusers_parity import at, counted, double, run

diffusers.logging.set_verbosity_error()


def patched(name: str, **kwargs):
    model = CASES[name].build(**kwargs)
    assert dit_fast.patch(model).replaced
    return model


def test_the_installed_diffusers_is_known():
    found = fingerprints.installed()
    assert found.keys() == TABLE.keys() == KNOWN.keys()
    for name, own in found.items():
        assert diffusers.__version__ in KNOWN[name][own], f"{name}: read it, then run fingerprints.py"
    assert fingerprints.listing() == (fingerprints.Path(fingerprints.__file__).with_name("known.py")).read_text()


def test_the_documentation_is_current(request):
    assert (request.config.rootpath / "docs" / "diffusers.md").read_text() == document.page()


@pytest.mark.parametrize("name", TABLE)
def test_arguments_keep_their_names_and_places(name):
    """Models pass some by name; diffusers' caches look into the signature."""
    module, cls = name.rsplit(".", 1)
    original = getattr(pytest.importorskip(f"diffusers.models.{module}"), cls)

    def arguments(forward):
        return [(p.name, p.kind, p.default) for p in inspect.signature(forward).parameters.values()]

    assert arguments(TABLE[name].block.forward) == arguments(original.forward)


class WithForward(transformer_flux.FluxTransformerBlock):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class WithoutForward(transformer_flux.FluxTransformerBlock):
    pass


def test_a_subclass_is_patched_unless_it_has_a_forward_of_its_own():
    model = nn.ModuleList([WithForward(32, 2, 16), WithoutForward(32, 2, 16)])
    report = dit_fast.patch(model)
    left = {s.name: s.why for s in report.skipped}
    assert left["0"] == f"its forward is not one of those known (diffusers {diffusers.__version__})"
    assert type(model[0]) is WithForward and "1" in {r.name for r in report.replaced}
    assert isinstance(model[1], WithoutForward) and type(model[1]).__name__ == "WithoutForward"
    dit_fast.unpatch(model)
    assert type(model[1]) is WithoutForward


@pytest.mark.parametrize(
    "owner,attribute",
    [(attention.JointTransformerBlock, "forward"), (normalization.AdaLayerNormZero, "forward")],
    ids=["block", "norm"],
)
def test_another_version_of_a_forward_is_left_alone(owner, attribute, monkeypatch):
    def forward(self, hidden_states, temb=None):
        return hidden_states

    monkeypatch.setattr(owner, attribute, forward)
    fingerprints.why_unknown.cache_clear()
    report = dit_fast.patch(CASES["sd3"].build())
    fingerprints.why_unknown.cache_clear()
    assert {s.cls for s in report.skipped if "not one of those known" in s.why} == {owner.__name__}
    assert owner.__name__ not in {r.cls for r in report.replaced}


def test_what_a_forward_relies_on_is_looked_at_too(monkeypatch):
    def forward(self, inputs):
        return inputs

    monkeypatch.setattr(normalization.FP32LayerNorm, "forward", forward)
    fingerprints.why_unknown.cache_clear()
    report = dit_fast.patch(CASES["wan"].build())
    fingerprints.why_unknown.cache_clear()
    assert {s.cls for s in report.skipped} == {"WanTransformerBlock"} and not report.replaced


class Known:
    def forward(self, x: int, y=1) -> int:
        """Words."""
        return x * (1 + y)  # more words


class Same:
    def forward(self, x, y=1):
        return (
            x * (1 + y)
        )  # fmt: skip


class Other:
    def forward(self, x, y=1):
        return x * (2 + y)


def test_a_fingerprint_sees_what_is_computed_and_no_more():
    known, same, other = (fingerprints.fingerprint(cls, Fused("", cls, ())) for cls in (Known, Same, Other))
    assert known == same != other


@pytest.mark.parametrize("name", ["dit", "pixart", "flux", "cogview4", "hidream", "wan", "auraflow", "kandinsky"])
def test_autocast_gives_the_same_dtypes_and_numbers(name):
    case = CASES[name]
    model = case.build()
    inputs = case.batch()
    seen = {}

    def note(module, args, output):
        outputs = output if isinstance(output, tuple) else (output,)
        seen.setdefault(id(module), []).append([o.dtype for o in outputs if isinstance(o, torch.Tensor)])

    hooks = [module.register_forward_hook(note) for module in model.modules() if "Block" in type(module).__name__]
    true = run(at(model, torch.float64), double(inputs))
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        eager = run(model, inputs)
    expected, hooked = copy.copy(seen), seen.clear()
    assert dit_fast.patch(model).replaced and hooked is None
    with torch.autocast("cpu", torch.bfloat16):
        got = run(model, inputs)
    assert seen == expected and len(seen) == len(hooks) > 0
    for key in ("out0", "hidden_states"):
        assert compare(got[key], eager[key], true[key], torch.bfloat16)[2] <= 1, key
    assert all(got[k].dtype == eager[k].dtype for k in eager)


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_gradient_checkpointing_changes_nothing(name):
    model, inputs = patched(name), CASES[name].batch()
    plain = run(model, inputs)
    model.enable_gradient_checkpointing()
    recomputed = run(model, inputs)
    assert all(torch.equal(plain[k], recomputed[k]) for k in plain)


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_compiles_as_one_graph(name):
    torch._dynamo.reset()
    case = CASES[name]
    small = {key: 1 for key in ("num_layers", "num_single_layers") if key in case.config}
    model = case._replace(config=case.config | small).build().eval()
    dit_fast.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got, plain = run(compiled, case.batch()), run(model, case.batch())
    assert len(got) == len(plain)
    for value, key in zip(got.values(), plain, strict=True):
        torch.testing.assert_close(value, plain[key])


def test_a_hooked_norm_is_called(monkeypatch):
    model, inputs = CASES["flux"].build(), CASES["flux"].batch()
    calls = []
    model.transformer_blocks[0].norm2.register_forward_hook(lambda *_: calls.append("hook"))
    before = run(model, inputs)
    assert len(calls) == 1
    dit_fast.patch(model)
    with counted(monkeypatch) as fused:
        after = run(model, inputs)
    assert len(calls) == 2 and fused["gated_residual_adaln"] == 3  # two streams of two blocks, less the hooked one
    torch.testing.assert_close(after, before)


def test_parts_replaced_after_patching_are_used():
    """LoRA and quantisation put other modules where Linears were; offloading puts a forward on the instance."""

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    models = [CASES["sd3"].build(), patched("sd3")]
    for model in models:
        block = model.transformer_blocks[1]
        block.norm1.linear = Doubled(block.norm1.linear)
        block.ff.net[2] = Doubled(block.ff.net[2])
        norm, own = block.norm2, block.norm2.forward
        norm.forward = lambda x, own=own: own(x) + 1
        block.norm2_context = nn.LayerNorm(32)
    theirs, ours = (run(model, CASES["sd3"].batch()) for model in models)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_a_modulation_a_token_is_computed_as_before(name, monkeypatch):
    model, inputs = CASES[name].build(), CASES[name].batch() | {"timestep": STEPS[:, None].repeat(1, 12)}
    before = run(model, inputs)
    dit_fast.patch(model)
    with counted(monkeypatch) as calls:
        after = run(model, inputs)
    assert not calls and all(torch.equal(after[k], before[k]) for k in before)


def test_chunked_feed_forward_is_computed_as_before(monkeypatch):
    for name in ("dit", "sd3"):
        model, inputs = CASES[name].build(), CASES[name].batch()
        for block in model.transformer_blocks:
            block.set_chunk_feed_forward(1, dim=0)
        before = run(model, inputs)
        dit_fast.patch(model)
        with counted(monkeypatch) as calls:
            after = run(model, inputs)
        assert set(calls) == {"adaln", "patch_embed"}  # of the modules in it
        torch.testing.assert_close(after, before)


def test_caches_find_the_blocks_of_a_patched_model():
    case = CASES["flux"]
    outputs = []
    for model in (case.build().eval(), patched("flux").eval()):
        model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.2))
        with torch.no_grad(), model.cache_context("cond"):
            outputs.append([model(**case.batch() | {"timestep": PART * k}).sample for k in (1.0, 0.99, 0.5)])
    torch.testing.assert_close(outputs[0], outputs[1])


def test_blocks_without_gates_are_left_with_the_reason():
    model = attention.BasicTransformerBlock(32, 2, 16)
    report = dit_fast.patch(model)
    assert [s.why for s in report.skipped] == ["its norm_type 'layer_norm' has no gates"]
    norm = normalization.AdaLayerNormContinuous(32, 32, norm_type="rms_norm")
    assert [s.why for s in dit_fast.patch(norm).skipped] == ["its RMSNorm has weights or is no layer norm"]


@pytest.mark.parametrize("positions", [{}, {"pos_embed_max_size": 6}, {"pos_embed_type": None}], ids=str)
def test_patch_embedding(positions, monkeypatch):
    embed = PatchEmbed(height=8, width=8, patch_size=2, in_channels=4, embed_dim=24, **positions)
    own, other = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 12, 4)
    before = embed(own), embed(other), copy.deepcopy(embed).bfloat16()(own.bfloat16())
    dit_fast.patch(embed)
    with counted(monkeypatch) as calls:
        torch.testing.assert_close(embed(own), before[0])
    assert calls == {"patch_embed": 1}
    torch.testing.assert_close(embed(other), before[1])
    low = copy.deepcopy(embed).bfloat16()
    torch.testing.assert_close(low(own.bfloat16()), before[2], rtol=2**-6, atol=2**-6)
    if low.pos_embed is not None:
        low.pos_embed = embed.pos_embed  # as from_pretrained leaves it
        with counted(monkeypatch) as calls:
            assert low(own.bfloat16()).dtype == torch.bfloat16
        assert not calls


@pytest.mark.parametrize("name", ["wan", "skyreels", "kandinsky"])
def test_what_is_float32_in_the_original_stays_so(name, monkeypatch):
    model = at(CASES[name].build(), torch.bfloat16)
    dit_fast.patch(model)
    dtypes = set()
    for op in ("adaln", "gated_residual"):
        original = getattr(ops, op)

        def spy(*tensors, original=original):
            dtypes.update(t.dtype for t in tensors if isinstance(t, torch.Tensor))
            return original(*tensors)

        monkeypatch.setattr(ops, op, spy)
    out = run(model, CASES[name].batch(torch.bfloat16))["out0"]
    assert dtypes == {torch.float32} and out.dtype == torch.bfloat16
