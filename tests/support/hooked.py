"""Hooks that stand in a module."""


def hooked(module):
    """Names of parts with a hook of any kind, PyTorch's or PyG's."""
    return [
        name
        for name, part in module.named_modules()
        if any(found for kind, found in vars(part).items() if kind.endswith("_hooks"))
    ]
