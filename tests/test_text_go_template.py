"""Ollama's templates as Jinja: what they render, and what cannot be translated."""

from __future__ import annotations

import json

import pytest

from pyllamacpu.errors import TemplateError
from pyllamacpu.text.go_template import is_go_template, to_jinja
from pyllamacpu.text.template import ChatTemplate

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
LLAMA = """{{- if .System }}<S>{{ .System }}{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<U>
{{- if and $.Tools $last }}[
{{- range $.Tools }}{{ . }};{{ end }}]
{{- end }}

{{ .Content }}</U>{{ if $last }}<A>

{{ end }}
{{- else if eq .Role "assistant" }}<A>
{{- if .ToolCalls }}
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}
{{- else }}

{{ .Content }}
{{- end }}{{ if not $last }}</A>{{ end }}
{{- else if eq .Role "tool" }}<T>{{ .Content }}</T>{{ if $last }}<A>{{ end }}
{{- end }}
{{- end }}"""
SYSTEM = {"role": "system", "content": "be {% short %}"}
USER, ANSWER = {"role": "user", "content": "hi {{ x }}"}, {"role": "assistant", "content": "ho"}


def rendered(source: str, *messages: dict[str, object], **more: object) -> str:
    return ChatTemplate(to_jinja(source)).render(messages, **more)  # type: ignore[arg-type]


def test_a_template_of_turns() -> None:
    begin = "<|im_start|>user\nhi {{ x }}<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(CHATML, USER) == begin
    whole = rendered(CHATML, SYSTEM, USER, ANSWER, USER)
    assert whole == f"<|im_start|>system\nbe {{% short %}}<|im_end|>\n{begin}ho<|im_end|>\n{begin}"
    assert rendered(CHATML, USER, ANSWER, add_generation_prompt=False) == f"{begin}ho<|im_end|>\n"
    assert "hi {{ x }}\n\nhi {{ x }}" in rendered(CHATML, USER, USER)
    assert rendered("{{ .Prompt }} ->", USER) == "hi {{ x }} ->"  # where the answer stands is the end


def test_a_template_of_messages() -> None:
    assert rendered(LLAMA, USER) == "<U>\n\nhi {{ x }}</U><A>\n\n"
    assert rendered(LLAMA, SYSTEM, USER, ANSWER, USER) == (
        "<S>be {% short %}<U>\n\nhi {{ x }}</U><A>\n\nho</A><U>\n\nhi {{ x }}</U><A>\n\n"
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    shown = rendered(LLAMA, USER, tools=[tool])
    assert shown.startswith('<U>[{"') and '"name":"f"' in shown
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    text = rendered(LLAMA, USER, {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "7"})  # fmt: skip
    assert text == '<U>\n\nhi {{ x }}</U><A>{"name": "f", "parameters": {"a":1}}</A><T>7</T><A>'


def test_values() -> None:
    many = "{{ range .Messages }}{{ if or (ne .Role `user`) (not true) }}-{{ else }}{{ .Role }}{{ end }},"
    many += "{{ end }}"
    assert rendered(many, USER, ANSWER) == "user,-,"
    assert rendered('{{ "a\\n{{" }}{{- /* no */ -}} {{ .Prompt }}', USER) == "a\n{{hi {{ x }}"
    assert rendered("{{ $x := .Prompt }}{{ $x }}", USER) == "hi {{ x }}"
    assert rendered("{{ range .Messages }}{{ else }}none{{ end }}{{ len .Messages | json }}", USER) == "1"


def test_tools_are_printed_as_json_wherever_they_stand() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    printed = {
        "{{ .Tools }}": [tool],
        "{{ $.Tools }}": [tool],
        "{{ json .Tools }}": [tool],
        "{{ range .Tools }}{{ . }}{{ end }}": tool,
        "{{ range $t := .Tools }}{{ $t }}{{ end }}": tool,
        "{{ range $i, $t := .Tools }}{{ json $t.Function.Parameters }}{{ end }}": {"type": "object"},
        "{{ range .Tools }}{{ .Function.Parameters | json }}{{ end }}": {"type": "object"},
        "{{ range .Tools }}{{ len .Function }}{{ end }}": 2,
        "{{ range .Tools }}{{ .Function.Description }}{{ end }}": None,
    }
    for source, value in printed.items():
        text = rendered(f"{source}{{{{ range .Messages }}}}{{{{ end }}}}", USER, tools=[tool])
        written = "" if value is None else json.dumps(value, separators=(",", ":"))  # as Go writes it
        assert text == written, source


@pytest.mark.parametrize(
    "source",
    ["{{ if .Prompt }}" * 2000 + "{{ end }}" * 2000, "{{ " + "(" * 5000 + ".Prompt" + ")" * 5000 + " }}"],
)
def test_a_bomb_of_brackets_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="too deeply"):
        to_jinja(source)


@pytest.mark.parametrize(
    "source, says",
    [
        ("{{ with .System }}{{ . }}{{ end }}", "with .System"),
        ("{{ .Prompt }}{{ .Thinking }}", "Thinking"),
        ("{{ if .Prompt }}x", "missing"),
        ("{{ end }}", "without its beginning"),
        ("{{ .Prompt", "missing"),
        ("{{ printf \"%s\" .Prompt }}", "printf"),
        ("{{ if (eq .Prompt }}{{ end }}", "eq .Prompt"),
        ("{{ if }}{{ end }}{{ .Prompt }}", "{ if }"),
        ("{{ range .Messages }}{{ else if x }}{{ end }}", "else if"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_named(source: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        to_jinja(source)


def test_which_kind_it_is() -> None:
    assert all(map(is_go_template, (CHATML, LLAMA, "{{.Prompt}}", "{{- range .Messages }}")))
    jinja = "{% for m in messages %}{{ m['content'] }}{{- m.role }}{{ bos_token }}{% endfor %}"
    assert not is_go_template(jinja) and not is_go_template("chatml")
