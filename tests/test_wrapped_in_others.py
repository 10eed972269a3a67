"""Language models as others hand them on: compiled, data-parallel, in a file, in a bridge."""

import os

import pytest
import torch
from support.tiny import random_pair, tiny
from torch import nn

import graphprune as gp
from graphprune import Batch


def agrees(model, module):
    """Mask 1 and mask 0 of a wrapped model are the module's own runs."""
    clean, corrupt = random_pair(module)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    edges = torch.ones(model.graph.num_edges)
    for mask, ids in ((edges, clean), (0 * edges, corrupt)):
        with torch.no_grad():
            want = module(ids).logits[:, -1]
        torch.testing.assert_close(model.run(batch, mask), want, rtol=1e-4, atol=1e-4)


HANDED_ON = {
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "data-parallel": nn.DataParallel,
    "both": lambda module: nn.DataParallel(torch.compile(module, backend="eager")),
}


@pytest.mark.parametrize("how", HANDED_ON)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_model_inside_is_wrapped(family, how):
    module = tiny(family)
    model = gp.wrap(HANDED_ON[how](module))
    assert model.module is module
    agrees(model, module)
    assert str(gp.describe(HANDED_ON[how](module))) == str(gp.describe(module))


def test_a_compiled_graph_network_is_wrapped():
    from torch_geometric.data import Data
    from torch_geometric.nn import GCNConv

    conv, edges = GCNConv(4, 2), torch.tensor([[0, 1, 2], [1, 2, 0]])
    data = Data(torch.randn(3, 4), edges)
    plain, other = (gp.wrap(m, data=data) for m in (conv, torch.compile(conv, backend="eager")))
    assert other.module is conv
    assert other.graph.fingerprint == plain.graph.fingerprint


class TransformerBridge(nn.Module):
    """Stands for TransformerLens's class of this name, which holds the model it was made of."""

    __module__ = "transformer_lens.model_bridge.bridge"

    def __init__(self, model):
        super().__init__()
        self.__dict__["original_model"] = model


def test_a_bridges_original_model_is_wrapped():
    module = tiny("llama")
    model = gp.wrap(TransformerBridge(module))
    assert model.module is module
    agrees(model, module)


def written(path, module, bits="F32"):
    """A Llama as a GGUF file; its layers' matrices in so many ``bits``, all else in float32."""
    gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    pytest.importorskip("accelerate", reason="the extra 'gguf' is not installed")
    config, out = module.config, gguf.GGUFWriter(path, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in module.state_dict().items():
        stem, _, kind = name.rpartition(".")
        title, numbers = f"{names.get_name(stem)}.{kind}", weight.float().numpy()
        if bits != "F32" and ".layers." in name and weight.ndim == 2:
            dtype = gguf.GGMLQuantizationType[bits]
            out.add_tensor(title, gguf.quants.quantize(numbers, dtype), raw_dtype=dtype)
        else:
            out.add_tensor(title, numbers)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_is_loaded(tmp_path):
    from transformers import AutoModelForCausalLM

    path = tmp_path / "tiny.gguf"
    written(path, tiny("llama", tie_word_embeddings=False))
    model = gp.wrap(path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    assert vars(model.module.config)["_name_or_path"] == "tiny.gguf"
    agrees(model, plain)
    half = gp.wrap(os.fspath(path), dtype="bfloat16")
    assert half.module.dtype == torch.bfloat16


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and nothing else")
    with pytest.raises(gp.InputError, match="cannot load the model"):
        gp.wrap(path)
    with pytest.raises(gp.InputError, match="is not there"):
        gp.wrap(tmp_path / "other.gguf")
