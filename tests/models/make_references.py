"""Write what llama.cpp computes from the small model files: NAME.npz beside NAME.gguf, and tokens.json for them all.

    python -m tests.models.make_references [FOLDER]

This needs ``pip install llama-cpp-python``, which compiles llama.cpp; orcd and its tests do without it.

NAME.npz holds for each prompt ``i``: ``p{i}_ids`` int32 [n], the prompt; ``p{i}_logits`` float32 [k, vocab], logits at
the positions ``p{i}_positions`` int32 [k]; ``p{i}_greedy`` int32 [NUM_GREEDY], the likeliest continuation, in which no
token ends it; ``p{i}_margin`` float32 [NUM_GREEDY], the largest logit less the second largest at each of its steps.
Prompt 0 is `PROMPT` as text, then comes `PROMPT` as a chat's first message if the file has a chat template, then a long
prompt of random ids. tokens.json holds `TEXTS` as ids and what the ids are as text again.

llama.cpp rounds the activations that it multiplies with quantised weights to 8 bits. So it is given copies of the files
with the same weights as F32, and keeps keys and values as F32: then it computes with a file's exact weights in float32
arithmetic (but for GELU, which it looks up in a table of float16). In three places it reads a file otherwise than the
models' authors do, whom orcd follows:

- It knows no sliding window of Phi-3. Here tokens go in one by one, and those that leave the window leave the cache.
- It takes longrope's short or long factors by the size of its cache. Here one copy has the short factors in both places
  and one the long ones, and a sequence is computed from its beginning with those that are due at its length.
- It rounds the dimensions between which YaRN interpolates. In gpt-oss's file rounding moves them by 0.0001 only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from ctypes import create_string_buffer
from pathlib import Path
from typing import Any

import gguf
import numpy as np

PROMPT = "Hello, the user and the system"
TEXTS = (  # none with a space before punctuation, which llama.cpp leaves out of the decoded text of some models
    PROMPT,
    "",
    " ",
    "  two spaces,\n\nnew lines\r\n\tand a tab ",
    "It's 2026: 12345 + 0.5 = x?",
    "CamelCase HTTPServer don't WE'LL x1y2",
    "naïve façade, größer, señor",
    "日本語のテキスト и русский",
    "emoji 👩‍🚀 and nul \0.",
    "<s>a</s> <|im_start|>user\nhello<|im_end|> <|end|> <think>the</think>",
    "<|start|>assistant<|channel|>final<|message|>hello<|return|> <|endoftext|>\n<|eot_id|> x",
)
NUM_RANDOM = 100
NUM_POSITIONS = 2
NUM_GREEDY = 24


def write_as_float32(source: Path, target: Path, renamed: dict[str, str] | None = None) -> None:
    """Copy a model with its weights expanded; ``renamed``: tensor -> the other one whose values it gets."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name in tensors:
        tensor = tensors[(renamed or {}).get(name, name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """One file's model in llama.cpp, in float32 and read as said above."""

    def __init__(self, path: Path, folder: Path) -> None:
        fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
        architecture = fields["general.architecture"]
        self.template: str | None = fields.get("tokenizer.chat_template")
        self._window = fields.get("phi3.attention.sliding_window")
        self._original_context = fields.get(f"{architecture}.rope.scaling.original_context_length", 0)
        short, long = "rope_factors_short.weight", "rope_factors_long.weight"
        self._within = self._load(path, folder / f"{path.stem}-short.gguf", {long: short})
        self._beyond = self._load(path, folder / f"{path.stem}-long.gguf", {short: long})
        self.vocab_size: int = self._within.n_vocab()
        self.eos_id: int = self._within.token_eos()

    @staticmethod
    def _load(path: Path, copy: Path, renamed: dict[str, str]) -> Any:
        from llama_cpp import GGML_TYPE_F32, Llama

        write_as_float32(path, copy, renamed)
        return Llama(str(copy), n_ctx=256, n_threads=1, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, verbose=False)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """A text as ids, as `llama_tokenize` gives them."""
        ids: list[int] = self._within.tokenize(text.encode(), add_bos=add_special, special=parse_special)
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Ids as text, control tokens spelt out."""
        from llama_cpp import llama_detokenize, llama_token

        text = create_string_buffer(4096)
        num_bytes = llama_detokenize(
            self._within._model.vocab, (llama_token * len(ids))(*ids), len(ids), text, len(text), False, True
        )
        return text.raw[:num_bytes].decode()

    def tokenize_chat(self, message: str) -> list[int]:
        """A conversation's first message, as the file's template puts it."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        assert self.template is not None
        bos, eos = (
            self._within._model.token_get_text(token_id)
            for token_id in (self._within.token_bos(), self._within.token_eos())
        )
        formatter = Jinja2ChatFormatter(self.template, eos_token=eos, bos_token=bos)
        prompt = formatter(messages=[{"role": "user", "content": message}]).prompt
        return self.tokenize(prompt, add_special=False, parse_special=True)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [len(ids), vocab] of one sequence, computed from its beginning, a token at a time."""
        model = self._beyond if len(ids) > self._original_context else self._within
        model.reset()
        rows = []
        for position, token_id in enumerate(ids):
            if self._window and position >= self._window:  # a token sees itself and those before it, that many in all
                model._ctx.kv_cache_seq_rm(0, 0, position - self._window + 1)
            model.eval([token_id])
            rows.append(np.ctypeslib.as_array(model._ctx.get_logits(), (model.n_vocab(),)).copy())
        return np.stack(rows)


def reference(model: LlamaCpp, prompts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """What NAME.npz holds."""
    arrays: dict[str, np.ndarray] = {}
    for number, prompt in enumerate(prompts):
        logits = model.logits(prompt)
        positions = np.arange(len(prompt))[-NUM_POSITIONS:]
        greedy: list[int] = []
        margins: list[float] = []
        while len(greedy) < NUM_GREEDY:
            last = model.logits([*prompt, *greedy])[-1]
            second, first = np.argsort(last)[-2:].tolist()
            greedy.append(first)
            margins.append(float(last[first] - last[second]))
        values = {"ids": prompt, "positions": positions, "greedy": greedy}
        arrays |= {f"p{number}_{name}": np.array(value, np.int32) for name, value in values.items()}
        arrays[f"p{number}_logits"] = logits[positions]
        arrays[f"p{number}_margin"] = np.array(margins, np.float32)
    return arrays


def tokenized(model: LlamaCpp) -> list[dict[str, Any]]:
    """`TEXTS` as ids, and as texts again."""
    cases = []
    for text in TEXTS:
        for special in (True, False) if "<" in text else (True,):
            ids = model.tokenize(text, add_special=special, parse_special=special)
            flags = {"add_special": special, "parse_special": special}
            cases.append({"text": text, **flags, "ids": ids, "detokenized": model.detokenize(ids)})
    return cases


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    tokens = {}
    for path in sorted(folder.glob("*.gguf")):
        with tempfile.TemporaryDirectory() as copies:
            model = LlamaCpp(path, Path(copies))
        prompts = [model.tokenize(PROMPT, add_special=True, parse_special=False)]
        if model.template:
            prompts.append(model.tokenize_chat(PROMPT))
        prompts.append(np.random.default_rng(0).integers(0, 256, NUM_RANDOM).tolist())
        arrays = reference(model, prompts)
        np.savez(path.with_suffix(".npz"), **arrays)
        tokens[path.stem] = {"n_vocab": model.vocab_size, "eos": model.eos_id, "cases": tokenized(model)}
        margin = min(float(values.min()) for name, values in arrays.items() if name.endswith("margin"))
        print(f"{path.stem}: logits deviate by {arrays['p0_logits'].std():.2f}, the least margin is {margin:.3f}")
    rows = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in tokens.items()]
    (folder / "tokens.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
