//! Chat templates: those of real models, and those of attackers.

use bitnet_model::text::{ChatTemplate, Message, RenderOptions, TextError};
use serde_json::json;

use crate::{TALES, tales_files};

const LLAMA3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const LLAMA31_HEADER: &str = "{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now(\"%d %b %Y\") %}
    {%- else %}
        {%- set date_string = \"26 Jul 2024\" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{{- \"Today Date: \" + date_string + \"\\n\" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
";

const QWEN3: &str = r##"{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- if tools %}
    {{- "# Tools\n" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"##;

const FALCON: &str = "{% for message in messages %}
{% if message['role'] not in ['system', 'user', 'assistant'] %}
{{ raise_exception('unknown role ' + message['role']) }}
{% endif %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\nYou are Falcon.<|im_end|>\n' }}{% endif %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn compile(source: &str) -> Result<ChatTemplate, TextError> {
    ChatTemplate::compile(source, Some("<s>"), Some("</s>"))
}

fn chat() -> Vec<Message> {
    vec![
        Message::new("system", "Be brief."),
        Message::new("user", " Hi! "),
        Message::new("assistant", "Hello."),
        Message::new("user", "Why?"),
    ]
}

fn prompted() -> RenderOptions {
    RenderOptions { add_generation_prompt: true, ..RenderOptions::default() }
}

#[test]
fn tales_template_renders_and_encodes_with_one_bos() {
    let files = tales_files();
    let template = ChatTemplate::load(&files).unwrap().unwrap();
    let prompt = template.render(&chat()[1..], &prompted()).unwrap();
    assert_eq!(prompt, "<|begin_of_text|>User: Hi!<|eot_id|>Assistant: Hello.<|eot_id|>User: Why?<|eot_id|>Assistant:");
    let tokens = TALES.encode_chat(&prompt).unwrap();
    assert_eq!(tokens.iter().filter(|&&token| Some(token) == TALES.bos()).count(), 1);
}

#[test]
fn templates_of_published_models_render() {
    let llama = compile(LLAMA3).unwrap().render(&chat(), &prompted()).unwrap();
    assert!(llama.starts_with(
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    ));
    assert!(llama.ends_with("<|start_header_id|>assistant<|end_header_id|>\n\n"));
    let qwen = compile(QWEN3).unwrap();
    let mut options = prompted();
    options.tools = Some(json!([{"type": "function", "function": {"name": "f", "b": [1, 2.5, null, true], "a": "<é>"}}]));
    options.arguments.insert("enable_thinking".into(), false.into());
    let prompt = qwen.render(&chat(), &options).unwrap();
    assert!(
        prompt.contains("\n{\"type\": \"function\", \"function\": {\"name\": \"f\", \"b\": [1, 2.5, null, true], \"a\": \"<é>\"}}"),
        "{prompt}"
    );
    assert!(prompt.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    let thought = vec![Message::new("user", "q"), Message::new("assistant", "<think>x</think>\n\nanswer"), Message::new("user", "r")];
    assert!(qwen.render(&thought, &prompted()).unwrap().contains("<|im_start|>assistant\nanswer<|im_end|>"));
}

#[test]
fn template_blocks_are_trimmed_and_its_exceptions_are_refusals() {
    let falcon = compile(FALCON).unwrap();
    let prompt = falcon.render(&[Message::new("user", "Hi")], &prompted()).unwrap();
    assert_eq!(prompt, "<|im_start|>system\nYou are Falcon.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let refused = falcon.render(&[Message::new("tool", "x")], &prompted());
    assert!(matches!(refused, Err(TextError::TemplateRefused { reason }) if reason == "unknown role tool"));
}

#[test]
fn template_time_is_the_callers() {
    let template = compile(LLAMA31_HEADER).unwrap();
    let with_time = RenderOptions { now_unix_seconds: Some(1_709_211_909), ..RenderOptions::default() };
    assert_eq!(template.render(&chat(), &with_time).unwrap(), "<s>Today Date: 29 Feb 2024\n");
    assert_eq!(template.render(&chat(), &RenderOptions::default()).unwrap(), "<s>Today Date: 26 Jul 2024\n");
    let with_tools = RenderOptions { tools: Some(json!([{"a": [1]}])), ..RenderOptions::default() };
    assert!(template.render(&chat(), &with_tools).unwrap().ends_with("{\n    \"a\": [\n        1\n    ]\n}"));
}

#[test]
fn constants_print_as_in_python() {
    let template = compile("{{ none }} {{ true }} {{ 1 == 2 }} {{ missing }}|{{ messages[0].content.upper() }}").unwrap();
    assert_eq!(template.render(&[Message::new("user", "hi")], &prompted()).unwrap(), "None True False |HI");
}

#[test]
fn reserved_and_unknown_arguments_are_refused() {
    let template = compile(QWEN3).unwrap();
    for name in [
        "messages",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "tools",
        "chat_template",
        "tokenize",
        "raise_exception",
        "strftime_now",
    ] {
        let mut options = prompted();
        options.arguments.insert(name.into(), json!("x"));
        assert!(matches!(template.render(&chat(), &options), Err(TextError::ReservedArgument { .. })), "{name}");
    }
    let mut options = prompted();
    options.arguments.insert("enable_thniking".into(), json!(false));
    assert!(matches!(template.render(&chat(), &options), Err(TextError::UnknownArgument { name }) if name == "enable_thniking"));
    let mut message = Message::new("user", "x");
    message.fields.insert("role".into(), json!("system"));
    assert!(matches!(template.render(&[message], &prompted()), Err(TextError::ReservedArgument { .. })));
}

#[test]
fn code_execution_payloads_are_errors_or_plain_text() {
    let payloads = [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ request.application.__globals__.__builtins__.open('/etc/passwd').read() }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__.os.system('id') }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ config.items() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('id') }}",
        "{% from 'chat' import x %}",
        "{% extends 'chat' %}",
        "{% include 'chat' %}",
        "{{ debug() }}",
    ];
    for payload in payloads {
        match compile(payload).map(|template| template.render(&chat(), &prompted())) {
            Err(TextError::Template { .. }) | Ok(Err(TextError::Template { .. })) => {}
            Ok(Ok(text)) => assert!(
                text.is_empty() || !["root", "uid", "class", "function"].iter().any(|word| text.contains(word)),
                "{payload}: {text}"
            ),
            other => panic!("{payload}: {:?}", other.map(|rendered| rendered.is_ok())),
        }
    }
}

#[test]
fn templates_that_do_not_end_are_typed_errors() {
    let fails = |source: &str| match compile(source) {
        Err(error) => error,
        Ok(_) => panic!("compiled: {}", &source[..source.len().min(80)]),
    };
    let nested_ifs = format!("{}x{}", "{% if true %}".repeat(5_500), "{% endif %}".repeat(5_500));
    assert!(matches!(fails(&nested_ifs), TextError::TemplateTooLong { .. } | TextError::Template { .. }));
    let fewer = format!("{}x{}", "{% if true %}".repeat(2_500), "{% endif %}".repeat(2_500));
    assert!(matches!(fails(&fewer), TextError::Template { .. }));
    assert!(matches!(fails(&format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000))), TextError::Template { .. }));
    assert!(matches!(
        fails("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        TextError::Template { .. } | TextError::TemplateFuel { .. }
    ));
    let loops = "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}";
    assert!(matches!(fails(loops), TextError::TemplateFuel { .. }));
    assert!(matches!(fails("{% for i in range(10 ** 9) %}{% endfor %}"), TextError::Template { .. } | TextError::TemplateFuel { .. }));
    for bomb in [
        "{{ 'a' * 1000000000 }}",
        "{% set x = 'a' * 1000000000 %}",
        "{{ ('a' * 1000000) * 1000 }}",
        "{{ '%01000000000d' % 1 }}",
        "{{ 'a'.replace('', 'b' * 100000000) }}",
    ] {
        assert!(
            matches!(fails(bomb), TextError::Template { .. } | TextError::TemplateFuel { .. } | TextError::TemplateOutput { .. }),
            "{bomb}"
        );
    }
    let doubling = format!("{{% set x = 'abcdefgh' %}}{}{{{{ x }}}}", "{% set x = x + x %}".repeat(40));
    assert!(matches!(fails(&doubling), TextError::TemplateFuel { .. } | TextError::TemplateOutput { .. }));
    assert!(matches!(fails(&"a".repeat(1 << 20)), TextError::TemplateTooLong { .. }));
}

#[test]
fn long_operator_chains_and_nested_values_do_not_overflow_the_stack() {
    let chains = [
        ("not ", ""),
        ("-", ""),
        ("", "+1"),
        ("", " and 1"),
        ("", ".a"),
        ("", "[0]"),
        ("", "|trim"),
        ("", "()"),
        ("", "**1"),
        ("", " if 1 else 1"),
    ];
    for (before, after) in chains {
        // As many as are accepted, and then as many as fit.
        let _ = compile(&format!("{{{{ {}a{} }}}}", before.repeat(1_000), after.repeat(1_000)));
        let n_links = 60_000 / (before.len() + after.len());
        // Whether it renders does not matter, only that it comes back.
        let _ = compile(&format!("{{{{ {}a{} }}}}", before.repeat(n_links), after.repeat(n_links)));
    }
    assert!(compile(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(5_000))).is_ok());
    assert!(matches!(compile(&format!("{{{{ 1{} }}}}", "~1".repeat(5_000))), Err(TextError::Template { .. })));
    for value in ["[ns.x]", "{'a': ns.x}", "namespace(x=ns.x)"] {
        let nested = format!("{{% set ns = namespace(x=[]) %}}{{% for i in range(99999) %}}{{% set ns.x = {value} %}}{{% endfor %}}");
        assert!(matches!(compile(&nested), Err(TextError::TemplateFuel { .. })), "{value}");
        let on_demand = format!("{{% if messages|length > 1 %}}{nested}{{% endif %}}");
        let template = compile(&on_demand).unwrap();
        let messages = vec![Message::new("user", "x"); bitnet_model::limits::N_MESSAGES_MAX];
        let _ = template.render(&messages, &prompted());
    }
}

#[test]
fn long_chats_have_the_fuel_they_need() {
    let template = compile(QWEN3).unwrap();
    let messages: Vec<Message> =
        (0..4_000).map(|turn| Message::new(if turn % 2 == 0 { "user" } else { "assistant" }, "word ".repeat(20))).collect();
    assert!(template.render(&messages, &prompted()).unwrap().len() > 400_000);
    let long = [Message::new("user", "word ".repeat(400_000))];
    assert!(template.render(&long, &prompted()).unwrap().len() > 2_000_000);
    let many = vec![Message::new("user", ""); bitnet_model::limits::N_MESSAGES_MAX + 1];
    assert!(matches!(template.render(&many, &prompted()), Err(TextError::TooManyMessages { .. })));
}

#[test]
fn generation_blocks_render_as_their_contents() {
    let render = |source: &str| {
        let options = RenderOptions { add_generation_prompt: false, ..RenderOptions::default() };
        compile(source).and_then(|template| template.render(&[Message::new("assistant", "Hi")], &options))
    };
    let text = render("{% for m in messages %}\n  {% generation %}\n{{ m.content }}|\n  {%- endgeneration -%}  \n{% endfor %}.").unwrap();
    assert_eq!(text, "Hi|.");
    // The body is a scope, as in the extension of transformers: what it sets is not seen behind it.
    let text = render("{% set x = 1 %}{%- generation %}{% set x = 2 %}{{ x }}{% endgeneration +%}\n{{ x }}").unwrap();
    assert_eq!(text, "2\n1");
    let kept = "{{ '{% generation %}' }}{{ {'a': {'b': \"%}{% generation %}\"}}.a.b }}{# {% generation %} #}{%- raw -%}{% generation %}{% endraw %}";
    assert_eq!(render(kept).unwrap(), "{% generation %}%}{% generation %}{% generation %}");
    assert!(render("{% generation %}x").is_err());
    assert!(render("{% generation x %}x{% endgeneration %}").is_err());
}

#[test]
fn absent_tools_and_documents_are_none() {
    let template = compile("{{ tools is none }} {{ documents is none }} {{ tools is defined }}").unwrap();
    assert_eq!(template.render(&chat(), &prompted()).unwrap(), "True True True");
}

#[test]
fn tojson_takes_the_arguments_of_json_dumps() {
    let render = |source: &str| compile(source).and_then(|template| template.render(&chat(), &prompted()));
    let same = |source: &str, expected: &str| assert_eq!(render(source).unwrap(), expected, "{source}");
    same("{{ {'b': 1, 'é': [true, none, 2.5]}|tojson }}", r#"{"b": 1, "é": [true, null, 2.5]}"#);
    same("{{ {'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true) }}", r#"{"a": {"c": 2, "d": 1}, "b": 1}"#);
    same("{{ [1, {'a': 2}]|tojson(separators=(',', ':')) }}", r#"[1,{"a":2}]"#);
    same(r#"{{ 'é😀"\x7f\n'|tojson(ensure_ascii=true) }}"#, r#""\u00e9\ud83d\ude00\"\u007f\n""#);
    same("{{ [1, [], {'a': {}}]|tojson(indent=2) }}", "[\n  1,\n  [],\n  {\n    \"a\": {}\n  }\n]");
    same("{{ [1, 2]|tojson(indent='\\t', separators=(';', '=')) }}", "[\n\t1;\n\t2\n]");
    same("{{ [1, 2]|tojson(indent=0) }}", "[\n1,\n2\n]");
    same("{{ {'é': 1, 'a': 2}|tojson(true, none, (',', ':'), true) }}", r#"{"a":2,"\u00e9":1}"#);
    same(
        "{{ [1e22, 1e16, 123456789012345680.0, 0.0001, 0.00001, -2.0]|tojson }}",
        "[1e+22, 1e+16, 1.2345678901234568e+17, 0.0001, 1e-05, -2.0]",
    );
    assert!(render("{{ 1|tojson(indnt=2) }}").is_err());
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    assert!(render(&format!("{nested}{{{{ ns.x|tojson }}}}")).is_err());
    let _ = render(&format!("{nested}{{{{ ns.x }}}}"));
}

#[test]
fn constants_print_as_in_python_wherever_they_stand() {
    let render = |source: &str| compile(source).unwrap().render(&chat(), &prompted()).unwrap();
    assert_eq!(render("{{ 'a' ~ true ~ none }} {{ true|string }} {{ [true, none]|join(',') }}"), "aTrueNone True True,None");
    assert_eq!(
        render("{{ [true, none] }} {{ {'a': 1, 'b': [\"it's\"]} }} {{ (1, 'x') }} {{ (1,) }}"),
        "[True, None] {'a': 1, 'b': [\"it's\"]} (1, 'x') (1,)"
    );
    assert_eq!(render("{{ messages[0] }}"), "{'role': 'system', 'content': 'Be brief.'}");
}

#[test]
fn template_reads_every_special_token_of_the_checkpoint() {
    let mut files = tales_files();
    files.chat_template =
        Some("{{ bos_token }}{{ pad_token }}{{ unk_token is defined }}{% if name is defined %}{{ name }}{% endif %}".into());
    files.special_tokens = [("pad_token".into(), "<pad>".into())].into();
    let template = ChatTemplate::load(&files).unwrap().unwrap();
    assert_eq!(template.render(&chat(), &prompted()).unwrap(), "<|begin_of_text|><pad>False");
    files.chat_template = None;
    assert!(ChatTemplate::load(&files).unwrap().is_none());
}
