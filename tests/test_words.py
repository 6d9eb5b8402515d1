"""Words that this project once had for itself and has given up for the field's terms.

A word that has no other use here is forbidden everywhere. One that is plain English too is forbidden only where it was
a name of ours: in identifiers, in certain phrases, or in the rooms where it had its own meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("orcd", "tasks", "worker", "kernels", "tests", "docs")
SUFFIXES = {".py", ".cu", ".cuh", ".lua", ".md", ".toml", ".yaml"}
TOP_LEVEL = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "Dockerfile", "compose.yaml", "pyproject.toml")


def word(*forms: str) -> str:
    """A pattern for a word, by itself or as part of an identifier: in snake_case, CamelCase or capitals."""
    either = "|".join(forms)
    small, title, capitals = either, "|".join(map(str.capitalize, forms)), either.upper()
    return rf"(?<![a-z])(?:{small})(?![a-z])|(?:{title})(?![a-z])|(?<![A-Z])(?:{capitals})(?![A-Z])"


@dataclass(frozen=True)
class Rule:
    """What was called ``old`` is called ``new``; ``pattern`` finds the old name in the files that ``where`` matches."""

    old: str
    new: str
    pattern: str
    caught: tuple[str, ...]
    passed: tuple[str, ...] = ()
    where: str = ""


MATMUL = r"^(tests/)?kernels/|^tests/bench/|^docs/|^README"
DECODE_ROWS = r"^(tests/)?(kernels|worker/engine)/"
ATTENTION = r"^(tests/)?kernels/.*attention"
RULES = (
    # Forbidden everywhere.
    Rule("desk", "job runner", word("desk"), ("the desk", "JobDesk", "desk_thread"), ("desktop",)),
    Rule("mail", "event queue", word("mail", "mails", "mailbox"), ("its mail", "MAIL_S", "put_mail"), ("email",)),
    Rule("verdict", "termination", word("verdict", "verdicts"), ("Verdict(job)", "a verdict")),
    Rule("twin", "reference", word("twin", "twins"), ("its NumPy twin", "twin_of"), ("between", "twinned")),
    Rule("unwell", "unhealthy", word("unwell"), ("is unwell", "is_unwell")),
    Rule("ahead_from", "first_inflight_step", r"\bahead_from\b", ("sequence.ahead_from",)),
    Rule(
        "in hand",
        "in flight",
        r"(?i)(?<!orcd_jobs_)\bin[ _-]hand\b|(?<!orcd_jobs)_in_hand\b",
        ("jobs in hand", "num_in_hand"),
        ("orcd_jobs_in_hand", "in hands"),
    ),
    Rule(
        "first words, last words",
        "first and final events",
        r"(?i)(?<![a-z])(?:first|last|final)[ _]words(?![a-z])",
        ("first and last words", "LAST_WORDS_S", "_last_words()"),
        ("the last word of a key", "in other words"),
    ),
    Rule("set aside", "pending", r"(?i)\bset(?:s|ting)?[ _]aside\b|\baside_", ("is set aside", "set_aside")),
    # An identifier or a phrase: the word is plain English too.
    Rule(
        "rest",
        "throttle interval",
        r"\b(?:\w+_)?REST(?:_\w+)?\b|\brest_(?:s|until|end|share)\b|\brest(?:s|ed|ing)? (?:for|until) \w+",
        ("MAX_REST_S", "rest_s(worked_s)", "rests for 0.1 s"),
        ("the rest of a key", "resting place", "rest.append"),
    ),
    Rule(
        "Draws",
        "SamplingParams",
        r"\bDraws\b(?! [a-z])|\bbuild_draws\b|\b_?draws: Draws|\.draws\.",
        ("Draws(1)", "import Draws", "build_draws(x)", "rows.draws.keys"),
        ("Draws on the device", "a row draws", "chunk.draws"),
    ),
    Rule(
        "Patch",
        "RowUpdate",
        word("patch", "patches"),
        ("Patch(row)", "num_patches", "PATCH.itemsize"),
        ("dispatch",),
        DECODE_ROWS,
    ),
    Rule(
        "Changes",
        "RowUpdates",
        r"\bChanges\b|\b\w+_changes\b|\bchanges: |\.changes\b|``changes``",
        ("write_changes(x)", "rows.changes", "class Changes"),
        ("what changes", "changes are rare"),
        DECODE_ROWS,
    ),
    Rule(
        "lone",
        "gemv",
        word("lone"),
        ("matmul_lone_normed", "LoneOutput", "LONE_HALF", "a lone token"),
        ("alone", "clone"),
        MATMUL,
    ),
    Rule(
        "few",
        "small batch",
        r"\b_?(?:matmul|multiply|launch|are)_few\b|\b_?few_\w+|\b(?:MAX_)?FEW(?:_\w+)?\b|\bFew[A-Z]"
        r"|\b(?:for|of) few\b(?! \w)",
        ("matmul_few", "FewShape", "MAX_FEW_WARPS", "the kernel for few."),
        ("a few tokens", "few of them", "among_many_and_few"),
        MATMUL,
    ),
    Rule(
        "tiles",
        "tiled GEMM",
        r"\bmatmul_tiles?(?:_|\b)|\bmultiply_tiles\b",
        ("matmul_tile_64", "multiply_tiles"),
        ("matmul_tiled_64",),
        MATMUL,
    ),
    Rule(
        "segment",
        "split-K partition",
        word("segment", "segments"),
        ("num_segments", "MAX_SEGMENTS", "a segment of K"),
        (),
        MATMUL,
    ),
    Rule(
        "beside",
        "overlaps_previous",
        r"\bbeside(?:\s*[:=,;)]|\b``)|\.beside\b|(?i:\bbeside the (?:kernel|one) ahead|runs beside it)",
        ("p.beside", "beside: bool", "int beside;", "runs beside it"),
        ("beside the streams",),
        r"^(tests/)?kernels/",
    ),
    Rule(
        "kernel ahead",
        "previous kernel",
        r"\bkernels? ahead\b|\bthe one ahead\b",
        ("the kernel ahead", "before the one ahead of it has ended"),
        ("one step ahead of the host", "chunks unpacked ahead of their products"),
        r"^(tests/)?(kernels|worker)/|^tests/bench/|^docs/",
    ),
    Rule(
        "processor",
        "SM",
        word("processor", "processors"),
        ("num_processors", "PROCESSOR_BYTES", "blocks on a processor"),
        ("a preprocessor definition",),
        r"^(tests/)?kernels/(cuda|ops|devices)/|^kernels/runtime/gpu_spec|^docs/",
    ),
    Rule(
        "seam",
        "interface",
        word("seam", "seams"),
        ("the seam to a device",),
        ("it seems", "seamless"),
    ),
    Rule(
        "give way",
        "be preempted",
        r"(?i)\bg[ai]v(?:e|es|ing) way\b",
        ("it had to give way", "gave way"),
        ("a way to give",),
        r"^(tests/)?worker/",
    ),
    Rule(
        "unit",
        "tile",
        word("unit", "units"),
        ("UNIT_KEYS", "a unit of keys"),
        (),
        ATTENTION,
    ),
    Rule("span", "KV split", word("span", "spans"), ("num_spans", "a span of keys"), ("spanning",), ATTENTION),
    Rule(
        "parts of a norm",
        "partitions",
        r"\bNORM_PARTS?\b|\bnum_norm_parts\b|\bnorm_parts\b",
        ("NORM_PARTS", "norm_parts"),
        ("NORM_PARTITIONS",),
    ),
    Rule(
        "Projection.parts",
        "matrices",
        r"\.parts\b(?!\()|\bparts: (?:tuple|list|Sequence)",
        ("projection.parts[0]", "parts: tuple[int]"),
        ("path.parts()",),
        r"^(tests/)?kernels/|^tests/bench/ops",
    ),
    Rule(
        "Part",
        "TensorSpec, TransferSlice",
        r"\bPart\b(?=[(\[\],|.)]|$)|\bimport\b.*\bPart\b|\bclass Part\b",
        ("Part(name)", "list[Part]", "import Part, Weights"),
        ("Part of the time",),
    ),
    Rule(
        "Piece",
        "TextDelta, Transfer",
        r"\bPiece\b|\b_?pieces?\.(?:text|source|num_ids|stopped|granule)\b",
        ("Piece(1)", "piece.text"),
        ("a piece of text", "spm.piece(x)"),
    ),
)


@cache
def lines() -> list[tuple[str, int, str]]:
    """Every line of the project's text with its file and number; line 0 is the file's own path."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    files += [ROOT / name for name in TOP_LEVEL if (ROOT / name).exists()]
    found = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if path != Path(__file__):
            found += [(name, number, text) for number, text in enumerate([name, *path.read_text().splitlines()])]
    return found


def uses(rule: Rule) -> Iterator[str]:
    """Where the old word still stands."""
    pattern, where = re.compile(rule.pattern), re.compile(rule.where)
    for name, number, text in lines():
        if where.search(name) and pattern.search(re.sub("MonkeyPatch|monkeypatch", "", text)):
            yield f"{name}:{number}: {text.strip()}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.old)
def test_an_old_word_stands_nowhere(rule: Rule) -> None:
    found = list(uses(rule))
    assert not found, f"{rule.old!r} is called {rule.new!r}:\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.old)
def test_a_rule_finds_the_private_use_and_lets_plain_english_pass(rule: Rule) -> None:
    for text in rule.caught:
        assert re.search(rule.pattern, text), text
    for text in rule.passed:
        assert not re.search(rule.pattern, text), text
