"""Messages and single cut edges, read and made inside Hugging Face's own forward by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Places(NamedTuple):
    """Module paths inside one block, with `{part}` standing for q, k or v where they differ."""

    block: str
    attn_norm: str | None
    projection: str
    attn_out: str
    attn_post_norm: str | None
    mlp_in: str  # its input is what the MLP reads
    mlp_out: str  # its output is what the MLP writes
    final_norm: str


GPT = Places("transformer.h", "ln_1", "", "attn.c_proj", None, "ln_2", "mlp", "transformer.ln_f")
LLAMA = Places(
    "model.layers",
    "input_layernorm",
    "self_attn.{part}_proj",
    "self_attn.o_proj",
    None,
    "post_attention_layernorm",
    "mlp",
    "model.norm",
)
GEMMA = LLAMA._replace(
    attn_post_norm="post_attention_layernorm",
    mlp_in="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
)
PLACES = {
    "gpt2": GPT._replace(projection="attn.c_attn"),
    "gpt_neo": GPT._replace(
        projection="attn.attention.{part}_proj", attn_out="attn.attention.out_proj"
    ),
    "gpt_neox": Places(
        "gpt_neox.layers",
        "input_layernorm",
        "attention.query_key_value",
        "attention.dense",
        None,
        "post_attention_layernorm",
        "mlp",
        "gpt_neox.final_layer_norm",
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "phi3": LLAMA._replace(projection="self_attn.qkv_proj"),
    "olmo2": GEMMA._replace(attn_norm=None, mlp_in="mlp"),
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
}


class Patched:
    """Reads and edits a Hugging Face model's own forward through module hooks."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.places = PLACES[model.config.model_type]
        self.heads = self.config.num_attention_heads
        self.kv_heads = getattr(self.config, "num_key_value_heads", self.heads)

    def module(self, layer: int, path: str) -> Any:
        return self.model.get_submodule(f"{self.places.block}.{layer}.{path}")

    @contextmanager
    def hooks(
        self, *pairs: tuple[nn.Module, Callable[[Tensor, Tensor], Tensor | None]]
    ) -> Iterator[None]:
        """Call each function with its module's (input, output); a tensor replaces the output."""
        handles = [
            module.register_forward_hook(lambda _m, x, y, function=function: function(x[0], y))
            for module, function in pairs
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def shifted_input(self, module: nn.Module, delta: Tensor) -> Iterator[None]:
        handle = module.register_forward_pre_hook(lambda _m, x: (x[0] + delta, *x[1:]))
        try:
            yield
        finally:
            handle.remove()

    def messages(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Every writer's message, from what the modules of a plain run take and give."""
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def record(module: nn.Module) -> tuple[nn.Module, Callable[[Tensor, Tensor], None]]:
            return module, lambda x, y: seen.__setitem__(module, (x, y))

        layers = range(self.config.num_hidden_layers)
        outs = [self.module(layer, self.places.attn_out) for layer in layers]
        mlps = [self.module(layer, self.places.mlp_out) for layer in layers]
        norms = [
            self.module(layer, self.places.attn_post_norm)
            for layer in layers
            if self.places.attn_post_norm
        ]
        embedding = self.model.get_input_embeddings()
        with self.hooks(*(record(m) for m in [embedding, *outs, *mlps, *norms])):
            self.model(ids, attention_mask=attention_mask)
        messages = {"input": seen[embedding][1]}
        for layer in layers:
            z = seen[outs[layer]][0].unflatten(-1, (self.heads, -1))
            ratio: Tensor | float = 1.0
            if norms:  # an RMS norm multiplies each number by gain over root mean square
                ratio = seen[norms[layer]][1] / seen[norms[layer]][0]
            for head in range(self.heads):
                only = torch.zeros_like(z)
                only[..., head, :] = z[..., head, :]
                bias = outs[layer].forward(torch.zeros_like(z.flatten(-2)))
                share = outs[layer].forward(only.flatten(-2)) - bias
                messages[f"a{layer}.h{head}"] = share * ratio
            messages[f"m{layer}"] = seen[mlps[layer]][1]
        return messages

    def columns(self, part: str, head: int) -> slice:
        """Where one head's q, k or v stands in its projection's output."""
        kind = self.config.model_type
        dim = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads
        start = head
        if kind == "gpt_neox":
            start = 3 * head + "qkv".index(part)
        elif kind in ("gpt2", "phi3"):
            start += {"q": 0, "k": self.heads, "v": self.heads + self.kv_heads}[part]
        return slice(start * dim, (start + 1) * dim)

    def logits(self, ids: Tensor, reader: str, delta: Tensor) -> Tensor:
        """Logits with ``delta`` added to what one reader reads."""
        if reader == "logits":
            with self.shifted_input(self.model.get_submodule(self.places.final_norm), delta):
                return self.model(ids).logits  # type: ignore[no-any-return]
        if reader.startswith("m"):
            with self.shifted_input(self.module(int(reader[1:]), self.places.mlp_in), delta):
                return self.model(ids).logits  # type: ignore[no-any-return]
        place, part = reader[1:-1].split("<")
        layer, head = (int(number) for number in place.replace("kv", "h").split(".h"))
        projection = self.module(layer, self.places.projection.format(part=part))
        columns = self.columns(part, head)
        norm = self.module(layer, self.places.attn_norm) if self.places.attn_norm else None
        residual: list[Tensor] = []

        def project(x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            shifted = x + delta if norm is None else norm.forward(residual[0] + delta)
            y[..., columns] = projection.forward(shifted)[..., columns]
            return y

        pairs: list[Any] = [(projection, project)]
        if norm is not None:
            pairs.append((norm, lambda x, _y: residual.append(x)))
        with self.hooks(*pairs):
            return self.model(ids).logits  # type: ignore[no-any-return]
