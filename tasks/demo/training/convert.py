"""Write the trained model as GGUF: ``python -m tasks.demo.training.convert TRAINED_DIR haiku-q4_k_m.gguf``.

The float32 file is written beside the quantised one, as ``haiku-f32.gguf`` in TRAINED_DIR; llama.cpp's own quantiser,
through llama-cpp-python, makes Q4_K_M of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import llama_cpp  # type: ignore[import-not-found,unused-ignore]
import numpy as np

from tasks.demo.training.network import Shape

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_f32(trained_dir: Path, path: Path) -> None:
    """tokenizer.json and model.npz of ``trained_dir`` as a float32 GGUF file."""
    tokenizer = json.loads((trained_dir / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocab | added, key=(vocab | added).__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in added else gguf.TokenType.NORMAL for token in tokens]
    with np.load(trained_dir / "model.npz") as archive:
        tensors = dict(archive)
    shape = Shape(vocab=len(tokens))

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Orcd Haiku")
    writer.add_description("A very small model that answers requests with haiku; ships with orcd as its demo.")
    writer.add_author("The orcd authors")
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(added["<|im_end|>"])
    writer.add_bos_token_id(added["<|endoftext|>"])
    writer.add_pad_token_id(added["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, target: Path) -> None:
    """``source`` as Q4_K_M in ``target``; RuntimeError if llama.cpp's quantiser refuses."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    options.nthread = 1
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if status != 0:
        raise RuntimeError(f"llama.cpp did not quantise {source}: status {status}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained_dir", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    f32 = arguments.trained_dir / "haiku-f32.gguf"
    write_f32(arguments.trained_dir, f32)
    quantise(f32, arguments.target)


if __name__ == "__main__":
    main()
