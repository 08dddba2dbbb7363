"""A conversation as it is told to a model that has no tool calls of its own: the tools described in the
system prompt, its calls as the tags that it wrote, their results as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from orchestrator.engine.parsing.shape import Shape, shapes
from orchestrator.engine.ports import Block, ModelRequest

_HEAD: Final = """\
How to call tools
Write the call as tags in your reply: the tool's name around its parameters, each in a tag of its own.

<tool_name>
<parameter>value</parameter>
</tool_name>

- Use the tags exactly as listed, plain, without a code block around them; nothing is escaped.
- Numbers, true, false, null, lists and objects are written as JSON.
- A text of several lines starts on the line after its tag; the newline before the closing tag
  belongs to it.
- Each call must be closed. Several calls may follow each other; they run in that order, after your reply.
- Never write a <result> yourself: results come in the next message.

The tools
"""


def describe(tools: Sequence[Mapping[str, Any]]) -> str:
    """What the system prompt says of the tools and of how to call them."""
    known = shapes(tools)
    return _HEAD + "\n\n".join(
        _described(tool, known[tool["name"]]) for tool in tools if tool["name"] in known
    )


def _described(tool: Mapping[str, Any], shape: Shape) -> str:
    schema = tool.get("input_schema", {})
    required = set(schema.get("required", ()))
    properties = schema.get("properties", {})
    lines = [f"- {_parameter(name, properties[name], name in required)}" for name in shape.parameters]
    example = {name: f"({name})" for name in shape.parameters if name in required}
    return "\n".join([f"## {shape.name}", tool.get("description", ""), *lines, shape.with_texts(example)])


def _parameter(name: str, schema: Mapping[str, Any], required: bool) -> str:
    several = schema.get("anyOf", ())
    kinds = [schema["type"]] if "type" in schema else [one.get("type", "any") for one in several]
    facts = [" or ".join(map(str, kinds)) or "any", "required" if required else "optional"]
    said = schema.get("description")
    return f"{name} ({', '.join(facts)})" + (f": {said}" if said else "")


def as_text(request: ModelRequest) -> ModelRequest:
    """The same request for a model without tool calls."""
    known = shapes(request.tools)
    names: dict[str, str] = {}
    return replace(
        request,
        system=f"{request.system}\n{describe(request.tools)}" if request.tools else request.system,
        tools=(),
        messages=[_message(message, known, names) for message in request.messages],
    )


def _message(
    message: Mapping[str, Any], known: Mapping[str, Shape], names: dict[str, str]
) -> Mapping[str, Any]:
    return {**message, "content": [_block(block, known, names) for block in message["content"]]}


def _block(block: Block, known: Mapping[str, Shape], names: dict[str, str]) -> Block:
    match block["type"]:
        case "tool_use":
            names[block["id"]] = block["name"]
            return {"type": "text", "text": _call(block, known)}
        case "tool_result":
            name = names.get(block["tool_use_id"], "tool")
            return {"type": "text", "text": _result(name, block)}
        case _:
            return block


def _call(block: Block, known: Mapping[str, Shape]) -> str:
    shape = known.get(block["name"]) or Shape(block["name"], {})
    return shape.spelled(block["input"])


def _result(name: str, block: Block) -> str:
    content = block["content"]
    said = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)
    inner = said.replace("</result", "<\\/result")
    error = ' error="true"' if block.get("is_error") else ""
    return f'<result of="{name}"{error}>\n{inner}\n</result>'
