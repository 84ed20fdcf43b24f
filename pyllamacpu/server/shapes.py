"""Shapes of bodies as JSON schemas, for the description of the API: what no single accessor of `Fields` says
(messages, tools, prompts), and what is answered.
"""

from __future__ import annotations

from typing import Any

Shape = dict[str, Any]

ANY: Shape = {}
TEXT: Shape = {"type": "string"}
NUMBER: Shape = {"type": "number"}
COUNT: Shape = {"type": "integer", "minimum": 0}
FLAG: Shape = {"type": "boolean"}
OBJECT: Shape = {"type": "object"}
TOKENS: Shape = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
VECTOR: Shape = {"type": "array", "items": NUMBER}


def one_of(*shapes: Shape) -> Shape:
    return {"anyOf": list(shapes)}


def array(items: Shape, **more: Any) -> Shape:
    return {"type": "array", "items": items, **more}


def words(*values: str) -> Shape:
    return {"type": "string", "enum": list(values)}


def or_null(shape: Shape) -> Shape:
    if shape == {"enum": []}:  # nothing but null is taken
        return {"type": "null"}
    return one_of(shape, {"type": "null"}) if shape else shape


def obj(optional: dict[str, Shape] | None = None, /, **required: Shape) -> Shape:
    """An object with these fields, and maybe others."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


# Fields of requests

_PART = obj(type=words("text"), text=TEXT)
_URL = one_of(TEXT, obj(url=TEXT))
_IMAGE = obj(type=words("image_url"), image_url=_URL)
_CONTENT = one_of(TEXT, array(one_of(_PART, _IMAGE)))
_ROLE = words("system", "developer", "user", "assistant", "tool", "function", "ipython")
_CALLS: Shape = {"type": "array", "items": OBJECT}
_SAYS_OR_CALLS = [obj(content=_CONTENT), obj(tool_calls={**_CALLS, "minItems": 1})]
_CHAT_MESSAGE = obj({"content": or_null(_CONTENT), "tool_calls": or_null(_CALLS), "name": ANY}, role=_ROLE)
MESSAGES = array({**_CHAT_MESSAGE, "anyOf": _SAYS_OR_CALLS}, minItems=1)
_FUNCTION = obj({"description": ANY, "parameters": or_null(OBJECT)}, name={"type": "string", "minLength": 1})
TOOLS = array(obj({"type": words("function")}, function=_FUNCTION), maxItems=128)
TOOL_CHOICE = one_of(words("auto", "none", "required"), OBJECT)
PROMPT = one_of(TEXT, TOKENS, array(one_of(TEXT, TOKENS), minItems=1))
_MEDIA_PROMPT = obj({"multimodal_data": array(TEXT)}, prompt_string=TEXT)
FORM = obj({"json_schema": ANY, "schema": ANY}, type=words("text", "json_object", "json_schema"))
BIAS = one_of({"type": "object", "additionalProperties": NUMBER}, array(array(ANY)))
DURATION: Shape = {"type": "string", "pattern": r"^(-?\d+(\.\d+)?(ns|us|ms|s|m|h))+$|^-?\d+(\.\d+)?$"}
KEEP_ALIVE = one_of(NUMBER, DURATION)
LIMIT = one_of(  # of tokens; below 0: until the end
    {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, {"type": "integer", "minimum": -2, "maximum": -1}
)
DIGEST: Shape = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
JSON_SCHEMA = one_of(OBJECT, FLAG)

_BLOCK = obj({"text": TEXT, "source": OBJECT}, type=words("text", "image", "tool_use", "tool_result"))
_ANTHROPIC_MESSAGES = array(
    obj(role=words("user", "assistant", "system"), content=one_of(TEXT, array(_BLOCK))), minItems=1
)
_ANTHROPIC_TOOLS = array(
    obj(
        {"description": or_null(TEXT), "input_schema": or_null(OBJECT)},
        name={"type": "string", "minLength": 1},
    ),
    maxItems=128,
)
_ITEMS = array(obj({"type": TEXT, "role": TEXT, "content": or_null(one_of(TEXT, array(OBJECT)))}), minItems=1)

LISTS: dict[str, Shape] = {"/lora-adapters": array(obj(id=COUNT, scale=NUMBER))}
"""Bodies that are lists."""

ANYWHERE: dict[str, Shape] = {
    "messages": MESSAGES,
    "tools": TOOLS,
    "tool_choice": TOOL_CHOICE,
    "response_format": FORM,
    "structured_outputs": OBJECT,
    "guided_json": JSON_SCHEMA,
    "guided_choice": array({"type": "string", "minLength": 1}, minItems=1),
    "lora": LISTS["/lora-adapters"],
    "n_predict": LIMIT,
    "num_predict": LIMIT,
    "guided_regex": TEXT,
    "guided_grammar": TEXT,
    "json_schema": JSON_SCHEMA,
    "logit_bias": BIAS,
    "samplers": one_of(TEXT, array(TEXT)),
    "chat_template_kwargs": OBJECT,
    "modalities": array(words("text")),
    "keep_alive": KEEP_ALIVE,
    "input_extra": array(obj({"filename": or_null(TEXT), "text": or_null(TEXT)})),
    "prompt": PROMPT,
    "input": PROMPT,
    "content": PROMPT,
}
"""Fields that have one shape in every body."""

BY_PATH: dict[str, dict[str, Shape]] = {
    "/v1/completions": {"logprobs": one_of({"type": "integer", "minimum": 0, "maximum": 20}, FLAG)},
    "/v1/responses": {
        "input": one_of(TEXT, _ITEMS),
        "tools": array(obj(type=words("function"), name={"type": "string", "minLength": 1}), maxItems=128),
        "text": obj({"format": or_null(FORM)}),
    },
    "/v1/messages": {
        "messages": _ANTHROPIC_MESSAGES,
        "system": one_of(TEXT, array(_PART, minItems=1)),
        "tools": _ANTHROPIC_TOOLS,
        "tool_choice": obj({"name": or_null(TEXT), "type": words("auto", "any", "tool", "none")}),
        "output_config": OBJECT,
        "output_format": OBJECT,
        "thinking": obj(type=words("disabled")),
    },
    "/api/generate": {"prompt": TEXT, "images": array(TEXT), "format": one_of(words("json", ""), OBJECT)},
    "/api/embeddings": {"prompt": one_of(TEXT, TOKENS)},
    "/api/chat": {"messages": {**MESSAGES, "minItems": 0}, "format": one_of(words("json", ""), OBJECT)},
    "/api/create": {
        "files": {"type": "object", "additionalProperties": DIGEST, "minProperties": 1},
        "messages": {**MESSAGES, "minItems": 0},
        "license": one_of({"type": "string", "minLength": 1}, array({"type": "string", "minLength": 1})),
    },
    "/completion": {"prompt": one_of(PROMPT, _MEDIA_PROMPT)},
    "/tokenize": {"content": TEXT},
    "/detokenize": {"tokens": array(COUNT)},
}
BY_PATH["/v1/responses/input_tokens"] = BY_PATH["/v1/responses"]
BY_PATH["/v1/messages/count_tokens"] = BY_PATH["/v1/messages"]

REQUIRED: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/embeddings": ("input",),
    "/v1/responses": ("input",),
    "/v1/responses/input_tokens": ("input",),
    "/v1/messages": ("messages", "max_tokens"),
    "/v1/messages/count_tokens": ("messages",),
    "/api/generate": ("model",),
    "/api/chat": ("model",),
    "/api/embed": ("model", "input"),
    "/api/embeddings": ("model", "prompt"),
    "/api/create": ("model",),
    "/api/show": ("model",),
    "/api/pull": ("model",),
    "/api/push": ("model",),
    "/api/delete": ("model",),
    "/api/copy": ("source", "destination"),
    "/completion": ("prompt",),
    "/infill": ("input_prefix", "input_suffix"),
    "/tokenize": ("content",),
    "/detokenize": ("tokens",),
    "/apply-template": ("messages",),
}
EITHER: dict[str, tuple[str, str]] = {
    "/embedding": ("content", "input"),
    **{path: ("model", "name") for path, names in REQUIRED.items() if "model" in names},
}
"""Two names of one field, of which one must be there."""

# What is answered

_USAGE = obj(prompt_tokens=COUNT, total_tokens=COUNT)
_STOPS = or_null(words("stop", "length", "tool_calls", "loop", "content_filter"))
_CALL = obj(id=TEXT, type=words("function"), function=obj(name=TEXT, arguments=TEXT))
_MESSAGE = obj({"tool_calls": array(_CALL)}, role=words("assistant"), content=or_null(TEXT))
_CHOICE = obj(index=COUNT, message=_MESSAGE, logprobs=or_null(OBJECT), finish_reason=_STOPS)
_TEXT_CHOICE = obj(index=COUNT, text=TEXT, logprobs=or_null(OBJECT), finish_reason=_STOPS)
_HEAD = {"id": TEXT, "created": COUNT, "model": TEXT}
_MODEL = obj(id=TEXT, object=words("model"), created=COUNT, owned_by=TEXT)
_EMBEDDING = obj(object=words("embedding"), index=COUNT, embedding=one_of(VECTOR, array(VECTOR), TEXT))
_DURATIONS = {"total_duration": COUNT, "load_duration": COUNT, "prompt_eval_count": COUNT}
_DONE = {"done_reason": TEXT, **_DURATIONS, "eval_count": COUNT}
_OLLAMA_HEAD = {"model": TEXT, "created_at": TEXT, "done": FLAG}
_DETAILS = obj(format=TEXT, family=TEXT, families=array(TEXT), parameter_size=TEXT, quantization_level=TEXT)
_LISTED = {"name": TEXT, "model": TEXT, "size": COUNT, "digest": TEXT, "details": _DETAILS}
_STATUS = obj(status=TEXT)
_COMPLETION = obj(index=COUNT, content=TEXT, tokens=array(COUNT), stop=FLAG, model=TEXT, stop_type=TEXT)

ANSWERS: dict[str, Shape] = {
    "/v1/models": obj(object=words("list"), data=array(_MODEL)),
    "/v1/models/{name}": _MODEL,
    "/v1/chat/completions": obj(
        **_HEAD, object=words("chat.completion"), choices=array(_CHOICE), usage=_USAGE
    ),
    "/v1/completions": obj(
        **_HEAD, object=words("text_completion"), choices=array(_TEXT_CHOICE), usage=_USAGE
    ),
    "/v1/embeddings": obj(object=words("list"), data=array(_EMBEDDING), model=TEXT, usage=_USAGE),
    "/v1/responses": obj(
        id=TEXT, object=words("response"), status=TEXT, output=array(OBJECT), usage=or_null(OBJECT)
    ),
    "/v1/responses/input_tokens": obj(object=words("response.input_tokens"), input_tokens=COUNT),
    "/v1/messages": obj(
        id=TEXT, type=words("message"), role=words("assistant"), content=array(OBJECT), usage=OBJECT
    ),
    "/v1/messages/count_tokens": obj(input_tokens=COUNT),
    "/api/generate": obj(_DONE, **_OLLAMA_HEAD, response=TEXT),
    "/api/chat": obj(_DONE, **_OLLAMA_HEAD, message=obj(role=words("assistant"), content=TEXT)),
    "/api/embed": obj(model=TEXT, embeddings=array(one_of(VECTOR, array(VECTOR))), **_DURATIONS),
    "/api/embeddings": obj(model=TEXT, embedding=one_of(VECTOR, array(VECTOR)), **_DURATIONS),
    "/api/create": _STATUS,
    "/api/pull": _STATUS,
    "/api/version": obj(version=TEXT),
    "/api/tags": obj(models=array(obj(**_LISTED, modified_at=TEXT))),
    "/api/ps": obj(models=array(obj(**_LISTED, expires_at=TEXT, size_vram=COUNT, context_length=COUNT))),
    "/api/show": obj(
        modelfile=TEXT, parameters=TEXT, template=TEXT, details=_DETAILS, model_info=OBJECT,
        capabilities=array(TEXT), modified_at=TEXT,
    ),
    "/completion": one_of(_COMPLETION, array(_COMPLETION)),
    "/infill": _COMPLETION,
    "/tokenize": obj(tokens=array(one_of(COUNT, obj(id=COUNT, piece=one_of(TEXT, array(COUNT)))))),
    "/detokenize": obj(content=TEXT),
    "/apply-template": obj(prompt=TEXT),
    "/embedding": array(obj(index=COUNT, embedding=array(one_of(VECTOR, array(VECTOR))))),
    "/props": obj(default_generation_settings=OBJECT, total_slots=COUNT, model_alias=TEXT),
    "/lora-adapters": one_of(array(obj(id=COUNT, path=TEXT, scale=NUMBER)), obj(success=FLAG)),
    "/slots": array(obj(id=COUNT, n_ctx=COUNT, is_processing=FLAG)),
    "/health": obj(status=TEXT),
}  # fmt: skip
"""JSON answers by path; others are text or nothing."""

_OPENAI_ERROR = obj(message=TEXT, type=TEXT, param=or_null(TEXT), code=one_of(TEXT, COUNT))
ERRORS: dict[str, Shape] = {
    "openai": obj(error=_OPENAI_ERROR),
    "anthropic": obj(type=words("error"), error=obj(type=TEXT, message=TEXT)),
    "ollama": obj(error=TEXT),
}
