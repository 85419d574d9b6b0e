"""Hugging Face transformers: a Llama (or Qwen 3) of the same shape in bf16, and BitNet's own classes with the packed weights that
2B4T is published with. `autobitlinear` is what that model's configuration asks for: weights are unpacked to bf16 when it is loaded.
`bitlinear` keeps them packed and unpacks each matrix whenever it is used. Both compile small functions at the first call, which
takes a C++ compiler."""

import json
import warnings

import numpy
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from transformers.initialization import no_init_weights

from shapes import RandomBytes, bytes_of_codes, linear_scale, trit_bytes


class Model:
    def __init__(self, model, size_bytes, weights):
        self.model, self.size_bytes, self.weights = model.eval(), size_bytes, weights
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        self.cache = None

    @torch.inference_mode()
    def _step(self, ids):
        ids = torch.tensor([ids])
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        return int(output.logits[0, -1].argmax())

    def read(self, ids):
        self.cache = None
        return self._step(ids)

    def write(self, token):
        return self._step([token])


def sizes(shape):
    return dict(
        vocab_size=shape.n_vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=4096,
        rms_norm_eps=shape.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=shape.tied_head,
    )


def random_llama(shape):
    config = (LlamaConfig if shape.is_bitnet else Qwen3Config)(**sizes(shape))
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    random, size_bytes = trit_bytes(), 0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        size_bytes += parameter.nbytes
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            values = torch.from_numpy(random.take(parameter.numel())).view(torch.int8).view_as(parameter)
            parameter.copy_(values).mul_(linear_scale(parameter.shape[1]))
    return Model(model, size_bytes, "bf16 (bf16)")


def checkpoint_folder(shape, variant, folder):
    return folder / f"{shape.name}-{variant}"


def tensors_file(shape, folder):
    """Both classes of linear layers read the same packed weights."""
    return folder / f"{shape.name}-packed.safetensors"


def prepare(shape, variant, folder):
    """Writes a checkpoint as 2B4T is published: packed trits, a scale for each matrix, a bf16 embedding."""
    if variant == "bf16":
        return
    if not shape.is_bitnet:
        raise ValueError("BitNetForCausalLM has the BitNet graph only")
    target, shared = checkpoint_folder(shape, variant, folder), tensors_file(shape, folder)
    target.mkdir(parents=True, exist_ok=True)
    quantization = {"quant_method": "bitnet", "linear_class": variant, "quantization_mode": "offline"}
    quantization["modules_to_not_convert"] = ["lm_head"]
    config = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2", "torch_dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config | sizes(shape) | {"quantization_config": quantization}))
    if not shared.exists():
        partial = shared.with_suffix(".partial")
        save_file(packed_tensors(shape), partial, metadata={"format": "pt"})
        partial.rename(shared)
    (target / "model.safetensors").unlink(missing_ok=True)
    (target / "model.safetensors").hardlink_to(shared)


def packed_tensors(shape):
    packed, ones = RandomBytes(bytes_of_codes(4, [0, 1, 2])), lambda n: torch.ones(n, dtype=torch.bfloat16)
    tensors = {"model.norm.weight": ones(shape.d_model)}
    for layer in range(shape.n_layers):
        prefix = f"model.layers.{layer}."
        for part, n, k in shape.linears():
            name = prefix + ("self_attn." if part[0] in "qkvo" else "mlp.") + part
            tensors[name + ".weight"] = torch.from_numpy(packed.take(n // 4 * k)).view(n // 4, k)
            # One class multiplies by it, the other divides.
            tensors[name + ".weight_scale"] = ones(1)
        norms = {"input_layernorm": shape.d_model, "post_attention_layernorm": shape.d_model}
        norms |= {"self_attn.attn_sub_norm": shape.d_queries, "mlp.ffn_sub_norm": shape.d_ff}
        tensors |= {f"{prefix}{name}.weight": ones(n) for name, n in norms.items()}
    table = numpy.random.default_rng(1).standard_normal((shape.n_vocab, shape.d_model), dtype=numpy.float32) * 0.05
    tensors["model.embed_tokens.weight"] = torch.from_numpy(table).to(torch.bfloat16)
    return tensors


def open_model(shape, variant, folder, threads, _n_context):
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if variant == "bf16":
        return random_llama(shape)
    target = checkpoint_folder(shape, variant, folder)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    kinds = {type(module).__name__ for module in model.modules()}
    expected = {"autobitlinear": "AutoBitLinear", "bitlinear": "BitLinear"}[variant]
    if expected not in kinds:
        raise RuntimeError(f"transformers made no {expected} from this checkpoint but {sorted(kinds)}")
    weights = "ternary file, bf16 in memory (bf16)" if variant == "autobitlinear" else "ternary, 2 bits (bf16)"
    return Model(model, (target / "model.safetensors").stat().st_size, weights)
