"""Words that this project once had for itself and has given up for the field's terms.

A word that has no other use here is forbidden everywhere. One that is plain English too is forbidden only where it was
a name of ours: in identifiers, in certain phrases, or in the rooms where it had its own meaning.
"""

from __future__ import annotations

from dataclasses import dataclass


class WordPattern(str):
    """A pattern that matches within one word or identifier, whatever is around that."""

    __slots__ = ()


def word(*forms: str) -> WordPattern:
    """A pattern for a word, by itself or as part of an identifier: in snake_case, CamelCase or capitals."""
    either = "|".join(forms)
    small, title, capitals = either, "|".join(map(str.capitalize, forms)), either.upper()
    return WordPattern(rf"(?<![a-z])(?:{small})(?![a-z])|(?:{title})(?![a-z])|(?<![A-Z])(?:{capitals})(?![A-Z])")


@dataclass(frozen=True)
class Rule:
    """What was called ``old`` is called ``new``; ``pattern`` finds the old name.

    ``caught`` and ``passed`` are examples of what it finds and what it does not.
    """

    old: str
    new: str
    pattern: str
    caught: tuple[str, ...]
    passed: tuple[str, ...] = ()
    where: tuple[str, ...] = ("",)
    """Patterns of the paths that it is looked for in; each must match a file."""


KERNELS = (r"^kernels/", r"^tests/kernels/")
ATTENTION = (r"^kernels/.*attention", r"^tests/kernels/.*attention")
DECODE_ROWS = (*KERNELS, r"^worker/engine/", r"^tests/worker/engine/")
ENGINE = (*KERNELS, r"^worker/", r"^tests/worker/")
PAGES = (r"^docs/", r"^README", r"^CONTRIBUTING", r"^CHANGELOG")
MATMUL = (*ENGINE, r"^tests/bench/", *PAGES)
RULES = (
    # Forbidden everywhere.
    Rule("desk", "job runner", word("desk", "desks"), ("the desk", "JobDesk", "Desks", "desk_thread"), ("desktop",)),
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
    Rule(
        "set aside",
        "pending",
        r"(?i)\bset(?:s|ting)?[ _](?:\w+[ _])?aside\b|\baside_",
        ("is set aside", "set_aside", "sets it aside"),
        ("set beside",),
    ),
    # An identifier or a phrase: the word is plain English too.
    Rule(
        "rest",
        "throttle interval",
        r"\b(?:\w+_)?REST(?:_\w+)?\b|\b_?rest_(?:s|ms|us|until|end|share)\b|\b_rest\b|\bdef rest\(|\bself\.rest\("
        r"|\brest(?:s|ed)\b|\brest(?:ing)? (?:for|until) \w+|\b(?:may|must|to|can|will|lets? \w+) rest\b",
        (
            "MAX_REST_S",
            "rest_s(worked_s)",
            "rest_ms = 3",
            "rests for 0.1 s",
            "_rest = 1",
            "def rest(self)",
            "the loop rests",
        ),
        ("the rest of a key", "resting place", "rest.append", "scheme, rest = x"),
    ),
    Rule(
        "Draws",
        "SamplingParams",
        r"\bDraws\b(?! [a-z])|\b(?:build|row|rows|batch)_draws\b|\b_?draws: Draws|\.draws\.",
        ("Draws(1)", "import Draws", "build_draws(x)", "row_draws", "rows.draws.keys"),
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
        rf"(?:{word('lone')})(?![ _]surrogate)",
        ("matmul_lone_normed", "LoneOutput", "LONE_HALF", "a lone token"),
        ("alone", "clone", "a_lone_surrogate"),
        MATMUL,
    ),
    Rule(
        "few",
        "small batch",
        r"\b_?(?:matmul|multiply|launch|are|is)_few\b|\b_?few_\w+|\b(?:MAX_)?FEW(?:_\w+)?\b|\bFew[A-Z]"
        r"|\b(?:for|of) few\b(?! \w)|\bkernels? (?:for|of) few\b",
        ("matmul_few", "is_few(", "FewShape", "MAX_FEW_WARPS", "made for few.", "the kernel for few tokens"),
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
        r"\bbeside(?:\s*[:=,;)]|\b``)|\.beside\b|(?i:\bbeside the (?:kernel|one) ahead)"
        r"|(?i:\b(?:launch\w*|run|runs|running|ran|start\w*|kernels?) beside\b)",
        ("p.beside", "beside: bool", "int beside;", "runs beside it", "launched beside"),
        ("beside the streams",),
        KERNELS,
    ),
    Rule(
        "kernel ahead",
        "previous kernel",
        r"\bkernels? ahead\b|\bthe one ahead\b",
        ("the kernel ahead", "before the one ahead of it has ended"),
        ("one step ahead of the host", "chunks unpacked ahead of their products"),
        MATMUL,
    ),
    Rule(
        "processor",
        "SM",
        word("processor", "processors"),
        ("num_processors", "PROCESSOR_BYTES", "blocks on a processor"),
        ("a preprocessor definition",),
        (
            r"^kernels/(cuda|ops|devices)/",
            r"^tests/kernels/(ops|devices)/",
            r"^kernels/runtime/gpu_spec",
            r"^docs/(?!openai)",
        ),
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
        (r"^worker/", r"^tests/worker/"),
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
        (*ENGINE, r"^tests/bench/ops"),
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
        r"\bPiece\b|\b_?pieces?\.(?:text|source|num_ids|stopped|granule)\b|\b_?piece(?: =|:) ",
        ("Piece(1)", "piece.text", "piece = 1", "piece: Delta"),
        ("a piece of text", "spm.piece(x)"),
    ),
    # Of kernels and the engine.
    Rule(
        "Turn",
        "Rotation",
        r"\bTurn\b|\bload_turn\b|\bturn_(?:head|to)\b",
        ("Turn turn", "turn_to("),
        ("in turn",),
        KERNELS,
    ),
    Rule("guess", "speculative item", word("guess", "guesses"), ("guess_item", "a guess"), (), (r"^kernels/cuda/",)),
    Rule("suspect", "last_enqueued", word("suspect"), ("stream.suspect", "_suspect"), ("unsuspecting",), ENGINE),
    Rule("residents", "blocks per SM", word("residents"), ("_RESIDENTS", "two residents"), ("resident",), KERNELS),
    Rule("ticket", "arrivals", word("ticket", "tickets"), ("rank_tickets",), (), KERNELS),
    Rule("split of a matrix", "partition", r"\bsplits\b", ("for splits in",), ("split-K",), (r"^kernels/ops/matmul",)),
)
