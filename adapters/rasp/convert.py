"""From a Tracr-compiled model (haiku parameters, encoders) to a torch module of the same numbers.

Tracr and jax are imported here, when a model is converted, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphprune.errors import InputError, MissingExtraError, UnsupportedModelError

from .transformer import TracrConfig, TracrTransformer

__all__ = ["convert", "tracr_outputs"]

_PARTS = ("params", "model_config", "residual_labels", "input_encoder", "output_encoder", "forward")


def _frameworks() -> tuple[Any, Any]:
    """The two libraries Tracr builds on."""
    try:
        import haiku
        import jax
    except ImportError as error:
        raise MissingExtraError(
            "Tracr's models are read with haiku and jax; install them by "
            "pip install 'graphprune[tracr]'"
        ) from error
    return haiku, jax


def _unembedding(compiled: Any, width: int) -> NDArray[np.float64]:
    """``[D, V]``: the model's own map to its outputs, read off the unit vectors."""
    haiku, _ = _frameworks()

    def run(x: Any) -> Any:
        return compiled.get_compiled_model().unembed(x, use_unembed_argmax=False)

    transformed = haiku.without_apply_rng(haiku.transform(run))
    unit = np.eye(width, dtype=np.float32)
    out = np.asarray(transformed.apply({}, unit), dtype=np.float64)
    return out.reshape(width, -1)


def tracr_outputs(compiled: Any, ids: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """``[B, T, V]``: Tracr's own forward pass on ids ``[B, T]``, before any argmax."""
    _, jax = _frameworks()
    run = jax.jit(compiled.forward)(compiled.params, np.array(ids))
    hidden = np.asarray(run.transformer_output.output, dtype=np.float64)
    out: NDArray[np.float64] = hidden @ _unembedding(compiled, hidden.shape[-1])
    return out


def _config(compiled: Any, outputs: int) -> TracrConfig:
    sizes, encoder = compiled.model_config, compiled.input_encoder
    if sizes.layer_norm:
        raise UnsupportedModelError("this model has layer norms; Tracr compiles models without")
    if encoder is None or encoder.bos_token is None or encoder.pad_token is None:
        raise UnsupportedModelError(
            "this model's input encoder names no BOS or no padding token; compile it with "
            "tracr.compiler.compiling.compile_rasp_to_model"
        )
    named = getattr(compiled.output_encoder, "encoding_map", None)
    values = None if named is None else tuple(sorted(named, key=named.__getitem__))
    if len(values or (0,)) != outputs:
        raise UnsupportedModelError(
            f"the model has {outputs} output directions and names {len(values or (0,))} values"
        )
    ids = encoder.encoding_map
    return TracrConfig(
        num_hidden_layers=int(sizes.num_layers),
        num_attention_heads=int(sizes.num_heads),
        head_dim=int(sizes.key_size),
        mlp_hidden_size=int(sizes.mlp_hidden_size),
        vocab_size=outputs,
        max_length=len(compiled.params["pos_embed"]["embeddings"]) - 1,
        tokens=tuple(sorted(ids, key=ids.__getitem__)),
        bos_id=int(encoder.bos_encoding),
        pad_id=int(encoder.pad_encoding),
        directions=tuple(compiled.residual_labels),
        values=values,
        causal=bool(sizes.causal),
    )


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _fill(linear: nn.Linear, params: Mapping[str, Any]) -> None:
    linear.weight.copy_(_tensor(params["w"]).T)
    linear.bias.copy_(_tensor(params["b"]))


def convert(compiled: Any, *, dtype: torch.dtype = torch.float64) -> TracrTransformer:
    """The compiled model as a torch module of the same numbers; ``compiled`` stays as it is.

    Compared with Tracr's own forward pass on one sequence of full length. Raises
    :class:`InputError` for anything that Tracr did not compile and :class:`UnsupportedModelError`
    where the two differ.
    """
    lacking = [name for name in _PARTS if not hasattr(compiled, name)]
    if lacking:
        raise InputError(
            "expected what tracr.compiler.compiling.compile_rasp_to_model gives, got "
            f"{type(compiled).__name__} (without {', '.join(lacking)})"
        )
    params = compiled.params
    head = _unembedding(compiled, len(compiled.residual_labels))
    config = _config(compiled, head.shape[1])
    with torch.no_grad():
        module = TracrTransformer(config).to(torch.float64)
        module.lm_head.weight.copy_(_tensor(head.T))
        stack = module.model
        stack.embed_tokens.weight.copy_(_tensor(params["token_embed"]["embeddings"]))
        stack.embed_positions.weight.copy_(_tensor(params["pos_embed"]["embeddings"]))
        for number, layer in enumerate(stack.layers):
            at = f"transformer/layer_{number}"
            pairs = (
                ("attn/query", "self_attn.q_proj"),
                ("attn/key", "self_attn.k_proj"),
                ("attn/value", "self_attn.v_proj"),
                ("attn/linear", "self_attn.o_proj"),
                ("mlp/linear_1", "mlp.fc_in"),
                ("mlp/linear_2", "mlp.fc_out"),
            )
            for theirs, ours in pairs:
                linear = layer.get_submodule(ours)
                assert isinstance(linear, nn.Linear)
                _fill(linear, params[f"{at}/{theirs}"])
        module.requires_grad_(False).eval()
        _compare(compiled, module)
        return module.to(dtype)


def _compare(compiled: Any, module: TracrTransformer) -> None:
    config = module.config
    own = config.vocabulary or (config.bos_id,)
    ids = [config.bos_id, *(own[i % len(own)] for i in range(config.max_length))]
    logits = module(torch.tensor([ids])).logits
    assert logits is not None
    gap = float((logits - torch.from_numpy(tracr_outputs(compiled, [ids]))).abs().max())
    if not gap <= 1e-4 * (1 + float(logits.abs().max())):
        raise UnsupportedModelError(
            f"the converted model differs from Tracr's own by {gap:.3g} on the ids {ids}; expected "
            "ReLU MLPs, no norms and softmax attention, as Tracr compiles them"
        )
