"""Encoders, vision transformers and encoder-decoders beside plain Hugging Face passes.

Random weights, float32, one thread, fresh inputs and masks every repeat; the ratio is to a plain
forward + backward with frozen weights of the same module on the same input (one side of the pair).
EAP's and EAP-IG's figures hold their reference, the masked runs' do not.

Figures of 2026-11-30, 2 cores of an Intel Xeon (AVX-512) that others used at the same
time, torch 2.13.0 (CPU), CPU seconds, least of five interleaved runs; in brackets those from before
readers shared a stream where no mask parts them:

- BERT, 4 layers: EAP 3.5 (8.3), EAP-IG (5) 12.2 (33.0), masked forward 1.2 (1.5), step 2.9 (4.9);
- BERT, 12 layers: EAP 3.9 (19.5), EAP-IG (5) 14.8 (76.0), masked forward 1.9 (3.0), step 9.9
  (11.4);
- ViT, 4 layers: EAP 2.9 (4.5), EAP-IG (5) 10.4 (16.2), masked forward 1.2 (1.3), step 2.1 (2.3);
- ViT, 12 layers: EAP 3.3 (7.7), EAP-IG (5) 11.7 (31.8), masked forward 1.6 (2.1), step 3.0 (4.1);
- BART, 4 + 4 layers: EAP 3.6, EAP-IG (5) 13.7, masked forward 1.7, step 3.9.
"""

import time

import pytest
import torch
import transformers as tf

import graphprune as gp

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

BATCH, TOKENS, VOCAB = 8, 32, 1000
_SIZE = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}


def bert(layers):
    config = tf.BertConfig(**_SIZE, num_hidden_layers=layers, vocab_size=VOCAB)
    return tf.BertForMaskedLM(config)


def vit(layers):
    config = tf.ViTConfig(**_SIZE, num_hidden_layers=layers, image_size=64, patch_size=16)
    return tf.ViTForImageClassification(config)


def bart(layers):
    config = tf.BartConfig(
        d_model=128, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=512, decoder_ffn_dim=512, vocab_size=VOCAB,
        max_position_embeddings=64,
    )  # fmt: skip
    return tf.BartForConditionalGeneration(config)


MODELS = {"bert": bert, "vit": vit, "bart": bart}


def fresh(name):
    if name == "vit":
        clean, corrupt = torch.randn(2, BATCH, 3, 64, 64)
        return gp.Batch({"pixel_values": clean}, {"pixel_values": corrupt}, BATCH)
    clean, corrupt = torch.randint(3, VOCAB, (2, BATCH, TOKENS))
    sides = [{"input_ids": clean}, {"input_ids": corrupt}]
    if name == "bart":
        told = torch.randint(3, VOCAB, (BATCH, TOKENS))
        sides = [side | {"decoder_input_ids": told} for side in sides]
    return gp.Batch(*sides, BATCH, positions=torch.full((BATCH,), 3))


def objective(outputs):
    return outputs[..., 0] - outputs[..., 1]


def plain(module, name):
    leaves = {
        "bert": lambda: [module.bert.embeddings],
        "vit": lambda: [module.vit.embeddings],
        "bart": lambda: [
            side.embed_tokens for side in (module.model.encoder, module.model.decoder)
        ],
    }[name]()

    def run():
        inputs = fresh(name).clean
        grows = lambda m, args, out: out.detach().requires_grad_(True)  # noqa: E731
        hooks = [leaf.register_forward_hook(grows) for leaf in leaves]
        logits = module(**inputs).logits
        for hook in hooks:
            hook.remove()
        objective(logits if logits.ndim == 2 else logits[:, 3]).sum().backward()

    return run


def seconds(job):
    start = time.process_time()
    job()
    return time.process_time() - start


def ratios(name, layers, repeats=5):
    torch.manual_seed(0)
    module = MODELS[name](layers).eval().requires_grad_(False)
    model = gp.wrap(module)
    edges, nodes = model.graph.num_edges, model.graph.num_nodes
    gates = torch.ones(5, nodes)
    gates[:, list(model.graph.input_nodes)] = (torch.arange(5) / 5)[:, None]

    def masked(stack=None):
        batch = fresh(name)
        reference = model.reference(batch)
        assert reference.full.shape == reference.ablated.shape
        mask = torch.rand(*(stack or ()), edges).requires_grad_(stack is None)

        def run():
            outputs = model.run(batch, mask, reference)
            if stack is None:
                objective(outputs).sum().backward()

        return seconds(run)

    def forward():
        batch = fresh(name)
        reference = model.reference(batch)
        mask = torch.rand(edges)
        with torch.no_grad():
            return seconds(lambda: model.run(batch, mask, reference))

    jobs = {
        "plain forward + backward": lambda: seconds(plain(module, name)),
        "reference": lambda: seconds(lambda: model.reference(fresh(name)).ablated),
        "EAP": lambda: seconds(lambda: model.edge_gradients(fresh(name), objective)),
        "EAP-IG (5)": lambda: seconds(
            lambda: model.edge_gradients(fresh(name), objective, gates=gates)
        ),
        "masked forward": forward,
        "eight masks": lambda: masked((8,)),
        "masked step": masked,
    }
    least = {}
    for turn in range(repeats + 1):
        for what, job in jobs.items():
            value = job()
            if turn:
                least[what] = min(value, least.get(what, value))
    return edges, least


@pytest.mark.parametrize("layers", [4, 12])
@pytest.mark.parametrize("name", MODELS)
def test_ratios_to_a_plain_pass(name, layers, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        edges, least = ratios(name, layers)
    finally:
        torch.set_num_threads(threads)
    base = least["plain forward + backward"]
    with capsys.disabled():
        print(f"\n{name}, {layers} layers, {edges:,} edges; plain {1000 * base:.1f} CPU ms")
        print("   ".join(f"{what} {value / base:.2f}" for what, value in least.items()))
