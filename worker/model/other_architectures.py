"""Architectures of GGUF files that no family runs, and why: for the error about such a file."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES: Mapping[str, str] = {
    "needs attention on compressed keys and values": "deepseek2 deepseek2-ocr glm-dsa minicpm3 mistral4 plm",
    "needs Mamba layers, whose state is no KV cache": (
        "falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe plamo2"
    ),
    "needs linear attention of another form": "arwkv7 kimi-linear rwkv6 rwkv6qwen2 rwkv7",
    "needs experts that are chosen or placed by other rules": (
        "afmoe arctic bailingmoe bailingmoe2 dbrx deepseek dots1 ernie4_5-moe exaone-moe glm4moe granitemoe grok"
        " grovemoe hunyuan-moe lfm2moe llama4 mimo2 minimax-m2 olmoe phimoe smallthinker step35"
    ),
    "needs rotations in sections, or other parts for images": (
        "chameleon cogvlm hunyuan_vl paddleocr qwen2vl qwen3vl qwen3vlmoe"
    ),
    "needs layers that no family has": (
        "apertus arcee baichuan bitnet bloom chatglm codeshell cohere2 command-r deci ernie4_5 exaone exaone4 falcon"
        " gemma gemma3n gptj gptneox hunyuan-dense internlm2 jais jais2 maincoder minicpm mpt nemotron olmo olmo2"
        " openelm orion pangu-embedded phi2 plamo plamo3 qwen refact seed_oss stablelm starcoder starcoder2 xverse"
    ),
    "makes embeddings, where orcd writes text": (
        "bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert nomic-bert"
        " nomic-bert-moe t5encoder"
    ),
    "needs an encoder beside what writes text": "t5",
    "writes text by diffusion, where orcd writes it token by token": "dream llada llada-moe rnd1",
    "makes speech, where orcd writes text": "wavtokenizer-dec",
    "guesses ahead for another model, which runs without it": "dflash eagle3 gemma4-assistant",
}

NEEDS = {name: need for need, names in _NAMES.items() for name in names.split()}
"""Architecture, as ``general.architecture`` names it -> what is said of it."""
