"""Hooks that stand in a module, and a head patched by hooks."""

import torch

OUTPUTS = {"gpt2": "h.{}.attn.c_proj", "llama": "layers.{}.self_attn.o_proj"}


def hooked(module):
    """Names of parts with a hook of any kind, PyTorch's or PyG's."""
    return [
        name
        for name, part in module.named_modules()
        if any(found for kind, found in vars(part).items() if kind.endswith("_hooks"))
    ]


def patched_head(module, clean, corrupt, *, layer, head):
    """Last logits ``[B, V]`` on ``clean`` with one head's code as it is on ``corrupt``."""
    base = getattr(module, "get_base_model", lambda: module)()
    output = base.base_model.get_submodule(OUTPUTS[base.config.model_type].format(layer))
    width = base.config.hidden_size // base.config.num_attention_heads
    own, kept = slice(head * width, (head + 1) * width), []

    def patch(_, args):
        z = args[0].clone()
        z[..., own] = kept[0]
        return (z, *args[1:])

    with torch.no_grad():
        handle = output.register_forward_pre_hook(lambda _, args: kept.append(args[0][..., own]))
        module(corrupt)
        handle.remove()
        handle = output.register_forward_pre_hook(patch)
        try:
            return module(clean).logits[:, -1]
        finally:
            handle.remove()
