"""A model's chat template (Jinja), rendered as Hugging Face transformers renders it."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from orcd.errors import InvalidRequest, ModelLoadFailed
from worker.text.chat import template_fault
from worker.text.chat.content_form import ContentForm

if TYPE_CHECKING:
    from worker.text.tokenizer import Tokenizer

MAX_CHARACTERS = 16 * 1024 * 1024
"""Most that a template may write, and the longest value that an operator may make in it. A filter or method that
makes a long string of short ones is not seen before it is done."""

_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """Compiled once; `render` may be called from several threads.

    Raises `ModelLoadFailed` if ``source`` is not a template. What a template can reach is sandboxed, and it cannot
    write more than `MAX_CHARACTERS`. How long it runs, and what it needs meanwhile, only a `TextProcess` limits.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self.source = source
        self.special_tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            environment = _Environment(now)
            parsed = environment.parse(source)
            self._template = environment.from_string(parsed)
            self.form = ContentForm.of(parsed)
            """How it takes the content of messages. `render` takes them as they are."""
        except Exception as error:  # a broken template can also break the compiler of the Python code that it becomes
            raise ModelLoadFailed(f"tokenizer.chat_template is not a valid template: {str(error)[:300]}") from error

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
        """The GGUF's own template, None if it has none; one of its own for requests with tools is part of it."""
        source, with_tools = (metadata.get(f"tokenizer.chat_template{name}") for name in ("", ".tool_use"))
        if source is None:
            return None
        if not isinstance(source, str) or not isinstance(with_tools, str | None):
            raise ModelLoadFailed("tokenizer.chat_template must be a string")
        return cls.for_tokenizer(source if with_tools is None else _either(with_tools, source), tokenizer)

    @classmethod
    def from_file(cls, path: str, tokenizer: Tokenizer) -> ChatTemplate:
        """A template in a file of its own, for the model that ``tokenizer`` is of."""
        try:
            source = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ModelLoadFailed(f"{path}: the chat template cannot be read ({reason})") from None
        try:
            return cls.for_tokenizer(source, tokenizer)
        except ModelLoadFailed as error:
            raise ModelLoadFailed(error.message.replace("tokenizer.chat_template", path, 1)) from None

    @classmethod
    def for_tokenizer(cls, source: str, tokenizer: Tokenizer) -> ChatTemplate:
        """A template that knows the tokenizer's special tokens."""
        return cls(
            source,
            bos_token=tokenizer.token_text(tokenizer.bos_id),
            eos_token=tokenizer.token_text(tokenizer.eos_id),
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, special tokens included: encode it with ``add_special=False, parse_special=True``.

        ``continue_final_message`` leaves the last message open, so that the answer goes on where it ends; it excludes
        ``add_generation_prompt``. ``variables`` are further names that the template knows. Raises `InvalidRequest`
        with what the template says about messages it does not accept, or if it exceeds a limit.
        """
        if continue_final_message:
            if add_generation_prompt:
                raise InvalidRequest("continue_final_message and add_generation_prompt exclude each other; set one")
            messages, final_text = _tag_final_message(messages)
        fixed = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        if clash := fixed.keys() & (variables or {}).keys():
            raise InvalidRequest(f"variables must not hold {min(clash)!r}: it has a field of its own")
        names = {**self.special_tokens, "documents": None, **(variables or {}), **fixed}
        try:
            text = self._write(names)
        except _Refusal as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {str(error)[:300]}") from None
        except MemoryError:
            raise InvalidRequest("messages: the model's chat template refuses them: it needs too much memory") from None
        except Exception as error:  # a template can raise anything that Python code can; its text may quote messages
            raise InvalidRequest(self._explain(names, error)) from None
        return _cut_at_tag(text, final_text) if continue_final_message else text

    def _write(self, names: Mapping[str, Any]) -> str:
        texts: list[str] = []
        length = 0
        for text in self._template.generate(names):
            texts.append(text)
            length += len(text)
            _check_length(length)
        return "".join(texts)

    def _explain(self, names: Mapping[str, Any], error: Exception) -> str:
        """What is said of an error in the template's code: of the error itself only its kind."""

        def fails(**others: Any) -> bool:
            try:
                self._write({**names, **others})
            except _Refusal:
                return False
            except Exception as other:
                return type(other) is type(error)
            return False

        kind = type(error).__name__
        where = template_fault.locate(lambda messages: fails(messages=messages), names["messages"])
        if where is not None:
            return f"{where}: the model's chat template cannot use it ({kind})"
        if names["tools"] is None and not fails(tools=[]):
            return f"tools: the model's chat template needs them ({kind})"
        return f"messages: the model's chat template fails whatever they are ({kind})"


class _Refusal(jinja2.TemplateRuntimeError):
    """Raised by the template on purpose, or by a limit."""


def _either(with_tools: str, without: str) -> str:
    """One template of two, by whether there are tools, as transformers chooses (Hermes 2 and 3, Command R).

    A newline behind a tag is dropped, as is one at a template's end; ``+`` keeps spaces before a tag.
    """
    first, second = (source.removesuffix("\n") for source in (with_tools, without))
    return f"{{% if tools is not none %}}\n{first}{{%+ else %}}\n{second}{{%+ endif %}}"


def _tag_final_message(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """A copy whose last message's text ends in a tag, and that text."""
    tagged: list[dict[str, Any]] = copy.deepcopy([dict(message) for message in messages])
    content = tagged[-1].get("content") if tagged else None
    if isinstance(content, str):
        tagged[-1]["content"] = content + _CONTINUE_HERE
        return tagged, content
    for block in reversed(content if isinstance(content, list) else []):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _CONTINUE_HERE
            return tagged, text
    raise InvalidRequest("continue_final_message needs a last message with text to go on from")


def _cut_at_tag(text: str, final_text: str) -> str:
    """Drop what the template wrote after the last message; a template that trims the message trims it here too."""
    start = text.rfind(_CONTINUE_HERE.strip())
    if start < 0 or final_text.strip() not in text:
        raise InvalidRequest("continue_final_message: the model's chat template does not write the last message whole")
    return text[:start] if text.startswith(_CONTINUE_HERE, start) else text[:start].rstrip()


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    def _output_child_to_const(
        self,
        node: jinja2.nodes.Expr,
        frame: jinja2.compiler.Frame,
        finalize: jinja2.compiler.CodeGenerator._FinalizeInfo,
    ) -> str:
        """Only the text between the tags: ``{{ '%999999999d' % 1 }}`` would be computed here, where no limit holds."""
        if not isinstance(node, jinja2.nodes.TemplateData):
            raise jinja2.nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        """``a ~ b``, with the environment's limit on length."""
        self.write("environment.concatenate((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Set up as in transformers' ``apply_chat_template``; operators refuse to make what would not fit in memory."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self, now: Callable[[], datetime.datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            optimized=False,  # what can be computed when compiling is computed when rendering, within the limits
        )
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: now().strftime(format)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Called for the operators of ``intercepted_binops``."""
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_length(len(left) + len(right))
        elif operator == "*" and isinstance(left, Sized) and isinstance(right, int):
            _check_length(len(left) * right)
        elif operator == "*" and isinstance(left, int) and isinstance(right, Sized):
            _check_length(left * len(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_length(left.bit_length() * right)
        return super().call_binop(context, operator, left, right)

    def concatenate(self, operands: Iterable[Any]) -> str:
        """Jinja's ``~``."""
        texts = list(map(str, operands))
        _check_length(sum(map(len, texts)))
        return "".join(texts)


def _check_length(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise _Refusal(f"it makes a value longer than {MAX_CHARACTERS} characters")


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; when rendering it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _Refusal(message)
