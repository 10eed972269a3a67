"""The oracle against Hugging Face's own forward: whole runs, sums, and single cut edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import pytest
import torch
from support.oracle import oracle_edges, oracle_logits, oracle_writer_values
from support.tiny import EAGER_ONLY, FAMILIES, VOCAB, Float64, random_pair, tiny
from torch import Tensor, nn

# Settings of the same families that change where or how something is added.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "gpt2_layer_scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2_no_scale": ("gpt2", {"scale_attn_weights": False}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt_neox_no_bias": ("gpt_neox", {"attention_bias": False}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_one_kv": ("llama", {"num_key_value_heads": 1}),
    "llama3_rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama_linear_rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    ),
    "mistral_no_window": ("mistral", {"sliding_window": None}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "phi3_window": ("phi3", {"sliding_window": 3}),
    "phi3_partial": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "olmo2_mha": ("olmo2", {"num_key_value_heads": 4}),
    "olmo2_biases": ("olmo2", {"attention_bias": True}),
}
Attention = Literal["sdpa", "eager"]
CASES = [
    pytest.param(name, attn, id=f"{name}-{attn}")
    for name, (family, _) in VARIANTS.items()
    for attn in ("sdpa", "eager")
    if attn == "eager" or (name in FAMILIES and family not in EAGER_ONLY)
]
FAMILY_CASES = [case for case in CASES if case.values[0] in FAMILIES]


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-11, rtol=0.0)


def build(name: str, attn: Attention = "eager", dtype: torch.dtype = torch.float64) -> Any:
    family, overrides = VARIANTS[name]
    return tiny(family, dtype=dtype, attn=attn, **overrides)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    """And one thread: with several, thousands of tiny operations wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def float64() -> Iterator[None]:
    with Float64():
        yield


# Whole runs.


@pytest.mark.parametrize(("name", "attn"), CASES)
@pytest.mark.usefixtures("float64")
def test_mask_one_is_the_clean_run_and_zero_the_corrupt_run(name: str, attn: Attention) -> None:
    model = build(name, attn)
    clean, corrupt = random_pair(model, batch=1)
    one = dict.fromkeys(oracle_edges(model), 1.0)
    zero = dict.fromkeys(oracle_edges(model), 0.0)
    full, ablated = model(clean).logits, model(corrupt).logits
    assert 0.5 < full.std() < 3
    logits = oracle_logits(model, clean, one, "counterfactual", corrupt)
    same(logits, full)
    same(oracle_logits(model, clean, {}, "zero"), full)
    logits = oracle_logits(model, clean, zero, "counterfactual", corrupt)
    same(logits, ablated)

    torch.manual_seed(0)
    mask = {edge: float(torch.rand(())) for edge in one}
    mixed = oracle_logits(model, clean, mask, "counterfactual", corrupt)
    assert (mixed - full).abs().mean() > 0.1
    assert (mixed - ablated).abs().mean() > 0.1


@pytest.mark.parametrize(("name", "attn"), FAMILY_CASES)
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-5), (torch.bfloat16, 0.4)]
)
def test_mask_one_is_the_clean_run_in_every_dtype(
    name: str, attn: Attention, dtype: torch.dtype, atol: float
) -> None:
    """With Hugging Face's float32 islands, which put a floor of about 1e-6 under float64 too."""
    model = build(name, attn, dtype)
    clean, corrupt = random_pair(model, batch=1)
    logits = oracle_logits(model, clean, {}, "counterfactual", corrupt)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, model(clean).logits, atol=atol, rtol=0.0)


@pytest.mark.parametrize(("name", "attn"), FAMILY_CASES)
@pytest.mark.usefixtures("float64")
def test_right_padding(name: str, attn: Attention) -> None:
    model = build(name, attn)
    clean, corrupt = random_pair(model, batch=2)
    lengths = [9, 5]
    attention_mask = torch.tensor([[int(p < length) for p in range(9)] for length in lengths])
    logits = oracle_logits(
        model, clean, {}, "counterfactual", corrupt, attention_mask=attention_mask
    )
    values = oracle_writer_values(model, clean, attention_mask)
    full = model(clean, attention_mask=attention_mask).logits
    messages = Patched(model).messages(clean, attention_mask)
    for row, length in enumerate(lengths):
        same(logits[row, :length], full[row, :length])
        for writer, value in values.items():
            same(value[row, :length], messages[writer][row, :length])
            assert not value[row, length:].any()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "olmo2", "gemma2"])
@pytest.mark.usefixtures("float64")
def test_given_values_generalise_the_other_ablations(name: str) -> None:
    model = build(name)
    clean, corrupt = random_pair(model, batch=1)
    edges = oracle_edges(model)
    mask = {edge: (index * 7 % 10) / 10 for index, edge in enumerate(edges)}
    given = {writer: value[0] for writer, value in oracle_writer_values(model, corrupt).items()}
    same(
        oracle_logits(model, clean, mask, "mean", means=given),
        oracle_logits(model, clean, mask, "counterfactual", corrupt),
    )
    pooled = dict.fromkeys(given, torch.zeros(model.config.hidden_size, dtype=torch.float64))
    same(
        oracle_logits(model, clean, mask, "optimal", means=pooled),
        oracle_logits(model, clean, mask, "zero"),
    )


# Edges.


@pytest.mark.parametrize("name", VARIANTS)
def test_edge_count(name: str) -> None:
    model = build(name)
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", heads)
    sequential = not (config.model_type == "gpt_neox" and config.use_parallel_residual)
    expected = 1 + layers * (heads + 1)
    for layer in range(layers):
        before = 1 + layer * (heads + 1)
        expected += (heads + 2 * kv) * before + before + heads * sequential
    edges = oracle_edges(model)
    assert len(edges) == len(set(edges)) == expected
    grouped = any(".kv" in reader for _, reader in edges)
    assert grouped == (kv != heads)


def test_edge_names() -> None:
    edges = oracle_edges(build("llama"))
    assert edges[0] == ("input", "a0.h0<q>")
    assert ("m0", "a1.kv1<k>") in edges
    assert ("a1.h3", "m1") in edges
    assert edges[-1] == ("m1", "logits")
    assert ("a0.h3", "a1.h2<v>") in oracle_edges(build("gpt2"))
    assert ("a1.h3", "m1") not in oracle_edges(build("gpt_neox"))
    with pytest.raises(KeyError, match="no such edges"):
        oracle_logits(build("llama"), torch.zeros(1, 3, dtype=torch.long), {("m1", "m0"): 0.0})


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("float64")
def test_every_edge_matters_and_gradients_are_derivatives(name: str) -> None:
    model = build(name)
    clean, corrupt = random_pair(model, batch=1)
    edges = oracle_edges(model)
    generator = torch.Generator().manual_seed(0)
    point, direction, weights = (
        torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in ((len(edges),), (len(edges),), (1, 9, VOCAB))
    )

    def objective(values: Tensor) -> Tensor:
        mask = dict(zip(edges, values, strict=True))
        return (oracle_logits(model, clean, mask, "counterfactual", corrupt) * weights).sum()

    with torch.enable_grad():
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf), leaf)
    assert (gradient.abs() > 1e-6).all()
    step = 1e-5
    slope = (objective(point + step * direction) - objective(point - step * direction)) / (2 * step)
    torch.testing.assert_close(gradient @ direction, slope, atol=1e-6, rtol=1e-6)


# Single edges, cut inside Hugging Face's own forward.


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


@pytest.mark.parametrize(("name", "attn"), CASES)
@pytest.mark.usefixtures("float64")
def test_writer_values_are_the_modules_messages_and_sum_to_the_residual(
    name: str, attn: Attention
) -> None:
    model = build(name, attn)
    ids, _ = random_pair(model)
    patched = Patched(model)
    values = oracle_writer_values(model, ids)
    messages = patched.messages(ids)
    assert list(values) == list(messages)
    for writer, value in values.items():
        same(value, messages[writer])

    residual: list[Tensor] = []
    final_norm = model.get_submodule(patched.places.final_norm)
    post_norms: list[Tensor] = []
    pairs: list[Any] = [(final_norm, lambda x, _y: residual.append(x))]
    layers = range(model.config.num_hidden_layers)
    if patched.places.attn_post_norm:
        pairs += [
            (
                patched.module(layer, patched.places.attn_post_norm),
                lambda x, y: post_norms.append(y / x),
            )
            for layer in layers
        ]
    with patched.hooks(*pairs):
        model(ids)
    total = torch.stack(list(values.values())).sum(0)
    if model.config.model_type in ("gpt2", "gpt_neo"):
        total = total + model.transformer.wpe.weight[: ids.shape[1]]
    for layer in layers:
        bias = patched.module(layer, patched.places.attn_out).bias
        if bias is not None:
            total = total + (bias * post_norms[layer] if post_norms else bias)
    same(total, residual[0])


@pytest.mark.parametrize("name", [*FAMILIES, "llama_biases", "olmo2_biases"])
@pytest.mark.usefixtures("float64")
def test_one_cut_edge_is_one_shifted_input(name: str) -> None:
    """For every reader one writer, its nearest or another, at different mask values."""
    model = build(name)
    clean, corrupt = random_pair(model, batch=1, length=7)
    patched = Patched(model)
    full = model(clean).logits
    values, ablated = patched.messages(clean), patched.messages(corrupt)
    writers: dict[str, list[str]] = {}
    for writer, reader in oracle_edges(model):
        writers.setdefault(reader, []).append(writer)
    for number, (reader, before) in enumerate(writers.items()):
        writer = before[-1] if number % 2 else before[number % len(before)]
        ablation = "zero" if number % 4 == 3 else "counterfactual"
        # Fading the only message out towards zero changes nothing after a norm until it is gone.
        m = 0.0 if ablation == "zero" else number % 3 / 4
        instead = 0.0 if ablation == "zero" else ablated[writer]
        expected = patched.logits(clean, reader, (1 - m) * (instead - values[writer]))
        assert (expected - full).abs().max() > 1e-4
        logits = oracle_logits(model, clean, {(writer, reader): m}, ablation, corrupt)
        same(logits, expected)


# The models themselves.


@pytest.mark.parametrize("name", VARIANTS)
def test_no_parameter_is_trivial_and_seeds_differ(name: str) -> None:
    family, overrides = VARIANTS[name]
    model = tiny(family, **overrides)
    assert not model.training
    assert model.dtype == torch.float32
    for parameter in model.parameters():
        assert bool(((parameter != 0) & (parameter != 1)).all())
        assert parameter.std() > 0.05
    state = torch.get_rng_state()
    again, other = tiny(family, **overrides), tiny(family, seed=1, **overrides)
    assert torch.equal(state, torch.get_rng_state())
    for one, two, three in zip(
        model.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
    clean, corrupt = random_pair(model)
    assert clean.shape == corrupt.shape == (3, 9)
    assert not (clean == corrupt).any()
