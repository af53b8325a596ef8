# SPDX-License-Identifier: Apache-2.0
"""Forwards that are known: fingerprint -> versions of diffusers. `fingerprints.py` writes this file."""

KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "attention.BasicTransformerBlock": {
        "a1a86c3641562e1f": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "attention.JointTransformerBlock": {
        "9c4db97fc6afa476": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "embeddings.PatchEmbed": {
        "587077cb3ee6cf97": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.AdaLayerNorm": {
        "a74fa7f60768ee3a": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.AdaLayerNormContinuous": {
        "163186984363a41b": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.AdaLayerNormZero": {
        "704a1d83b5718649": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.AdaLayerNormZeroSingle": {
        "2d2e994565b884c1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.CogVideoXLayerNormZero": {
        "d71ed53c0135982f": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.CogView3PlusAdaLayerNormZeroTextImage": {
        "ddc87ac6792d27a3": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.LuminaLayerNormContinuous": {
        "f37036199c9133b5": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "normalization.SD35AdaLayerNormZeroX": {
        "eb57aa2e31ed2512": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.auraflow_transformer_2d.AuraFlowJointTransformerBlock": {
        "7b4c3e1029e8992d": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.auraflow_transformer_2d.AuraFlowSingleTransformerBlock": {
        "efae4a568891eea1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.cogvideox_transformer_3d.CogVideoXBlock": {
        "a8b1257b360d5f38": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.consisid_transformer_3d.ConsisIDBlock": {
        "45f070cc320a245f": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.sana_transformer.SanaModulatedNorm": {
        "466e5373268f9b79": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.sana_transformer.SanaTransformerBlock": {
        "d7e0d806a638b6aa": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_allegro.AllegroTransformerBlock": {
        "32c3c6aa69cd5afc": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_bria.BriaSingleTransformerBlock": {
        "69a4455fcf9295d2": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_bria.BriaTransformerBlock": {
        "171ffb6b05b0fef4": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_bria_fibo.BriaFiboSingleTransformerBlock": {
        "80e17f82868542ed": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_bria_fibo.BriaFiboTransformerBlock": {
        "ad1c4d13fd1659d1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_chroma.ChromaAdaLayerNormContinuousPruned": {
        "fbe4b0df3d53f113": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_chroma.ChromaAdaLayerNormZeroPruned": {
        "148f4613a8bd3630": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_chroma.ChromaAdaLayerNormZeroSinglePruned": {
        "0208cf052548edfc": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_chroma.ChromaSingleTransformerBlock": {
        "b2cd94015c7648e7": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_chroma.ChromaTransformerBlock": {
        "8a5710e99a1cb45e": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_chronoedit.WanTransformerBlock": {
        "5bb4ea4dc8cf7a35": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_cogview3plus.CogView3PlusTransformerBlock": {
        "62218270010bcdc0": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_cogview4.CogView4AdaLayerNormContinuous": {
        "0f4666f2b51e3996": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_cogview4.CogView4AdaLayerNormZero": {
        "bc8720f5ffbe63b3": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_cogview4.CogView4TransformerBlock": {
        "011f0403c69d50cb": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_cosmos.CosmosAdaLayerNorm": {
        "af9c71cdb8dc1f67": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_cosmos.CosmosAdaLayerNormZero": {
        "0d7fc545f763fd72": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_cosmos.CosmosTransformerBlock": {
        "cfd4adbbb87e0db0": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_easyanimate.EasyAnimateLayerNormZero": {
        "baa1fb257e9b5de5": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_easyanimate.EasyAnimateTransformerBlock": {
        "bb05f3d7fdf20c8b": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_flux.FluxSingleTransformerBlock": {
        "762baabafd59df5f": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_flux.FluxTransformerBlock": {
        "ad1c4d13fd1659d1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_flux2.Flux2SingleTransformerBlock": {
        "1ebca862f8eb484a": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_flux2.Flux2TransformerBlock": {
        "66da83ed48d6916d": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_glm_image.GlmImageAdaLayerNormContinuous": {
        "0f4666f2b51e3996": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_glm_image.GlmImageAdaLayerNormZero": {
        "bc8720f5ffbe63b3": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_glm_image.GlmImageTransformerBlock": {
        "67cea3ed6b0538ff": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hidream_image.HiDreamImageOutEmbed": {
        "f76f40b471842ad3": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hidream_image.HiDreamImageSingleTransformerBlock": {
        "06404c282a2db546": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hidream_image.HiDreamImageTransformerBlock": {
        "76dcc133ddc65bb4": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuan_video.HunyuanVideoIndividualTokenRefinerBlock": {
        "c06c2d222ce31582": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuan_video.HunyuanVideoSingleTransformerBlock": {
        "40f0a2c2673bd411": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuan_video.HunyuanVideoTransformerBlock": {
        "dd8384252de0619b": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuan_video15.HunyuanVideo15IndividualTokenRefinerBlock": {
        "c06c2d222ce31582": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuan_video15.HunyuanVideo15TransformerBlock": {
        "dd8384252de0619b": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuanimage.HunyuanImageIndividualTokenRefinerBlock": {
        "c06c2d222ce31582": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuanimage.HunyuanImageSingleTransformerBlock": {
        "40f0a2c2673bd411": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_hunyuanimage.HunyuanImageTransformerBlock": {
        "58fa7048fc9322ac": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_joyimage.JoyImageTransformerBlock": {
        "5ddf07b079d0047d": ("0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_kandinsky.Kandinsky5TransformerDecoderBlock": {
        "3d5db780e32e89c1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_kandinsky.Kandinsky5TransformerEncoderBlock": {
        "44e0d85b01491d64": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_longcat_image.LongCatImageSingleTransformerBlock": {
        "762baabafd59df5f": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_longcat_image.LongCatImageTransformerBlock": {
        "ad1c4d13fd1659d1": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_ltx.LTXVideoTransformerBlock": {
        "b46e7bb596436268": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_lumina2.Lumina2TransformerBlock": {
        "8523c1eb4d0225f1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_mochi.MochiTransformerBlock": {
        "d860884178da6437": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_ovis_image.OvisImageSingleTransformerBlock": {
        "340c6aa24c536f6a": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_ovis_image.OvisImageTransformerBlock": {
        "ad1c4d13fd1659d1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_prx.FinalLayer": {
        "460b9d56661e1525": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_prx.PRXBlock": {
        "26898c56efcb6f76": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_qwenimage.QwenImageTransformerBlock": {
        "9de74a9be927a1f4": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_sana_video.SanaModulatedNorm": {
        "d85e28a79698104d": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_sana_video.SanaVideoTransformerBlock": {
        "284bdcb4f782d75c": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_skyreels_v2.SkyReelsV2TransformerBlock": {
        "cc33739c2ee98a3d": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_wan.WanTransformerBlock": {
        "5bb4ea4dc8cf7a35": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_wan_animate.WanTransformerBlock": {
        "5bb4ea4dc8cf7a35": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_wan_vace.WanVACETransformerBlock": {
        "bbf11b82c7dd3ea1": ("0.36.0", "0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_z_image.FinalLayer": {
        "51c2a20e9e293810": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
    "transformers.transformer_z_image.ZImageTransformerBlock": {
        "68b4edae2437c60a": ("0.38.0", "0.40.0", "0.41.0", "0.42.1"),
    },
}
