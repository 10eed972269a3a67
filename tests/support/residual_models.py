"""Tiny random encoders, vision transformers and encoder-decoders of transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

import graphprune as gp

VOCAB = 23
_SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
_TEXT = _SIZES | {
    "intermediate_size": 24, "vocab_size": VOCAB, "max_position_embeddings": 20,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_IMAGE = _SIZES | {"intermediate_size": 24, "image_size": 8, "patch_size": 4, "num_channels": 3}
_MODERN = _TEXT | {
    "cls_token_id": 1, "sep_token_id": 2, "local_attention": 4, "global_attn_every_n_layers": 2
}  # fmt: skip
_DISTIL = {
    "dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 24, "vocab_size": VOCAB,
    "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_T5 = {
    "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2,
    "vocab_size": VOCAB, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
    "relative_attention_num_buckets": 8,
}  # fmt: skip
_BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20,
    "vocab_size": VOCAB, "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
_KIN = _BART | {"scale_embedding": True}
_DEBERTA = _TEXT | {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip
_CLIP_TEXT = _SIZES | {
    "intermediate_size": 8,
    "vocab_size": 9,
    "eos_token_id": 2,
    "bos_token_id": 1,
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_IMAGE, num_labels=4)),
    "deit": lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**_IMAGE, num_labels=4)),
    "deit-distilled": lambda: tf.DeiTForImageClassificationWithTeacher(
        tf.DeiTConfig(**_IMAGE, num_labels=4)
    ),
    "clip-classes": lambda: tf.CLIPForImageClassification(
        tf.CLIPConfig(vision_config=_IMAGE, text_config=_CLIP_TEXT, num_labels=4)
    ),
    "clip-vision": lambda: tf.CLIPVisionModelWithProjection(
        tf.CLIPVisionConfig(**_IMAGE, projection_dim=5)
    ),
    "siglip": lambda: tf.SiglipForImageClassification(
        tf.SiglipConfig(vision_config=_IMAGE, text_config=_CLIP_TEXT, num_labels=4)
    ),
    "dinov2": lambda: tf.Dinov2ForImageClassification(
        tf.Dinov2Config(**_SIZES, image_size=8, patch_size=4, mlp_ratio=2, num_labels=4)
    ),
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**_TEXT)),
    "bert-classes": lambda: tf.BertForSequenceClassification(
        tf.BertConfig(**_TEXT, num_labels=3)
    ),
    "bert-tokens": lambda: tf.BertForTokenClassification(tf.BertConfig(**_TEXT, num_labels=3)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**_TEXT)),
    "roberta-classes": lambda: tf.RobertaForSequenceClassification(
        tf.RobertaConfig(**_TEXT, num_labels=3)
    ),
    "xlm-roberta": lambda: tf.XLMRobertaForMaskedLM(tf.XLMRobertaConfig(**_TEXT)),
    "camembert": lambda: tf.CamembertForMaskedLM(tf.CamembertConfig(**_TEXT)),
    "distilbert": lambda: tf.DistilBertForMaskedLM(tf.DistilBertConfig(**_DISTIL)),
    "distilbert-classes": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(**_DISTIL, num_labels=3)
    ),
    "electra": lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**_TEXT, embedding_size=12)),
    "electra-classes": lambda: tf.ElectraForSequenceClassification(
        tf.ElectraConfig(**_TEXT, embedding_size=16, num_labels=3)
    ),
    "albert": lambda: tf.AlbertForMaskedLM(
        tf.AlbertConfig(**_TEXT | {"num_hidden_layers": 3}, embedding_size=12)
    ),
    "mpnet": lambda: tf.MPNetForMaskedLM(
        tf.MPNetConfig(**_TEXT)
    ),
    "deberta": lambda: tf.DebertaV2ForMaskedLM(
        tf.DebertaV2Config(**_DEBERTA, share_att_key=True, position_buckets=4,
                           norm_rel_ebd="layer_norm")
    ),
    "deberta-classes": lambda: tf.DebertaV2ForSequenceClassification(
        tf.DebertaV2Config(**_DEBERTA, max_relative_positions=4, num_labels=3)
    ),
    "modernbert": lambda: tf.ModernBertForMaskedLM(tf.ModernBertConfig(**_MODERN)),
    "modernbert-classes": lambda: tf.ModernBertForSequenceClassification(
        tf.ModernBertConfig(**_MODERN, num_labels=3)
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5)),
    "t5-gated": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "mt5": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**_T5)),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**_BART, scale_embedding=True)),
    "marian": lambda: tf.MarianMTModel(tf.MarianConfig(**_KIN)),
    "mbart": lambda: tf.MBartForConditionalGeneration(tf.MBartConfig(**_KIN)),
    "pegasus": lambda: tf.PegasusForConditionalGeneration(tf.PegasusConfig(**_KIN)),
    "m2m": lambda: tf.M2M100ForConditionalGeneration(tf.M2M100Config(**_KIN)),
    "blenderbot": lambda: tf.BlenderbotForConditionalGeneration(tf.BlenderbotConfig(**_KIN)),
    "bart-classes": lambda: tf.BartForSequenceClassification(tf.BartConfig(**_BART, num_labels=3)),
}  # fmt: skip


def model(name: str, *, dtype: torch.dtype = torch.float64) -> Any:
    """The model ``name`` with small random weights, none of them 0 or 1 by initialisation."""
    torch.manual_seed(sum(map(ord, name)))
    module = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
            if name.startswith(("t5", "mt5")):  # whose scores have no scale: far from saturation
                parameter.mul_(0.5)
    return module.to(dtype)


def reads(name: str) -> tuple[str, ...]:
    """What a model takes: pixels, ids, or ids for the encoder and the decoder."""
    if name.startswith(("vit", "deit", "clip", "siglip", "dinov2")):
        return ("pixel_values",)
    texts = ("t5", "mt5", "bart", "marian", "mbart", "pegasus", "m2m", "blenderbot")
    if name.startswith(texts) and not name.endswith("classes"):
        return ("input_ids", "decoder_input_ids")
    return ("input_ids",)


def batch(
    name: str, *, size: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> gp.Batch:
    """Random pairs for a model; texts with padding, read at a few positions."""
    source = torch.Generator().manual_seed(seed)

    def side() -> dict[str, Tensor]:
        if reads(name) == ("pixel_values",):
            return {"pixel_values": torch.randn(size, 3, 8, 8, generator=source, dtype=dtype)}
        out = {}
        for key, length in zip(reads(name), (6, 4), strict=False):
            out[key] = torch.randint(3, VOCAB, (size, length), generator=source)
        mask = torch.ones(size, 6, dtype=torch.int64)
        out["input_ids"][:, -2] = 2  # an EOS, where BART's classes are read
        mask[1, -1], out["input_ids"][1, -1] = 0, 0
        return out | {"attention_mask": mask}

    clean, corrupt = side(), side()
    places = None
    if clean.get("input_ids") is not None and not name.endswith("-classes"):
        places = torch.tensor([2, 0, 3])[:size]
    return gp.Batch(clean, corrupt, size, positions=places)
