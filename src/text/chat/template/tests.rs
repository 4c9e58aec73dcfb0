//! What templates may use, and what hostile ones get.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

fn render(source: &str, variables: &Value) -> Result<String, ChatError> {
    let date = Date::parse("2025-06-28").unwrap();
    ChatTemplate::parse(source)?.render(variables.as_object().unwrap(), date)
}

#[test]
fn templates_have_what_published_ones_use() {
    let variables = json!({
        "messages": [{"role": "user", "content": " <think>a</think> b "}, {"role": "x", "content": "c"}],
        "tools": {"z": 1, "a": 2},
    });
    for (source, expected) in [
        ("{{ messages[0].content.split('</think>')[-1].strip() }}", "b"),
        ("{{ messages[0]['content'] | trim | upper | length }}", "18"),
        (
            "{% for k, v in tools.items() %}{{ k }}{{ v }}{% if not loop.last %},{% endif %}{% endfor %}",
            "z1,a2",
        ),
        ("{% for k, v in tools | items %}{{ k }}{{ loop.index0 }}{% endfor %}", "z0a1"),
        (
            "{% for m in messages[1:] %}{{ m.role }}{% endfor %}{{ messages[::-1][0].role }}{{ messages[-1].role }}",
            "xxx",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{{ strftime_now('%d %B %Y') }}", "28 June 2025"),
        (
            "{{ nothing is defined }}{{ nothing }}{{ messages is iterable }}{{ 'abc' is string }}",
            "FalseTrueTrue",
        ),
        ("{{ tools is mapping }}{{ none is none }}{{ 'role' in messages[0] }}", "TrueTrueTrue"),
        ("{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "321"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
            "c",
        ),
        ("{% generation %}a{%- endgeneration -%} b", "ab"),
        ("  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"),
        ("{{ tools.get('q', 5) }}{{ 'a-b'.replace('-', '+') }}{{ 'x'.startswith('x') }}", "5a+bTrue"),
        ("{{ messages | map(attribute='role') | join(',') }}{{ [1, 2] | last }}", "user,x2"),
        ("{{ messages | selectattr('role', 'equalto', 'x') | list | length }}", "1"),
        ("{{ '%s' | format('a') }}{{ 7 // 2 }}{{ 'a' ~ 1 }}{{ (1 if false) }}", "a3a1"),
    ] {
        match render(source, &variables) {
            Ok(text) => assert_eq!(text, expected, "{source}"),
            Err(error) => panic!("{source}: {error}"),
        }
    }
}

#[test]
fn a_template_may_refuse() {
    let error = render("{{ raise_exception('roles must alternate') }}", &json!({})).unwrap_err();
    assert!(matches!(&error, ChatError::Refused(message) if message == "roles must alternate"), "{error}");
    assert!(error.is_conversation_fault());
    let error =
        render("{% macro f() %}{{ raise_exception('x') }}{% endmacro %}{{ f() }}", &json!({})).unwrap_err();
    assert!(matches!(error, ChatError::Refused(_)), "{error}");
}

#[test]
fn hostile_templates_end_soon_in_an_error() {
    let nested = "{% if true %}".repeat(10_000) + &"{% endif %}".repeat(10_000);
    let parentheses = format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    let lists = format!("{{{{ {}{} }}}}", "[".repeat(10_000), "]".repeat(10_000));
    let minus = format!("{{{{ {}1 }}}}", "-".repeat(100_000));
    let dots = format!("{{{{ x{} }}}}", ".a".repeat(50_000));
    let filters = format!("{{{{ x{} }}}}", "|upper".repeat(40_000));
    let long = "x".repeat(MAX_TEMPLATE_BYTES + 1);
    for source in [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.__class__ }}{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'chat_template' %}",
        "{% include '/etc/passwd' %}",
        "{% extends 'chat_template' %}",
        "{% import 'x' as y %}",
        "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{{ 'x' * 10**12 }}",
        "{{ [0] * 10**12 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% if %}",
        "{{",
        "{% endfor %}",
        "{{ 'unclosed }}",
        "{{ nothing.at.all }}",
        &nested,
        &parentheses,
        &lists,
        &long,
    ] {
        let start = Instant::now();
        let result = render(source, &json!({"messages": []}));
        let short: String = source.chars().take(60).collect();
        assert!(result.is_err(), "{short}: {:?}", result.map(|text| text.len()));
        assert!(start.elapsed() < Duration::from_secs(10), "{short}: {:?}", start.elapsed());
    }
    // Harmless, but must not take the program down.
    for source in [
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x={}) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x }}",
        &dots,
        &filters,
        &minus,
    ] {
        let start = Instant::now();
        let _ = render(source, &json!({}));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn deep_values_are_no_json() {
    let source = "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    assert!(matches!(render(source, &json!({})), Err(ChatError::Template { .. })));
}

#[test]
fn constants_are_those_of_expressions() {
    let source = "it's {{ 'a<b' + \"c\\n'd\" }} {# 'no' #} {% if x == '</t>' %}{x: 'no'} {{ 'e }}f' }}";
    assert_eq!(constants(source), ["</t>", "a<b", "c\n'd", "e }}f"]);
    for broken in ["{{ 'abc", "{%", "{", "{#", "{{ '\\"] {
        constants(broken);
    }
}

#[test]
fn a_template_that_never_ends_is_given_up_for_good() {
    let grow =
        "{% for i in range(64) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}";
    let source = format!("{{% set ns = namespace(a=1, b=1) %}}{grow}{{{{ ns.a == ns.b }}}}");
    let template = ChatTemplate::parse(&source).unwrap();
    let render = || template.render(&Map::new(), Date::today());
    assert!(matches!(render(), Err(ChatError::TemplateLimit { unit: "seconds", .. })));
    let start = Instant::now();
    assert!(matches!(render(), Err(ChatError::TemplateLimit { unit: "seconds", .. })));
    assert!(start.elapsed() < Duration::from_secs(1), "the second time is refused at once");
    // As JSON the same values stop at a size.
    let source = source.replace("ns.a == ns.b", "ns.a | tojson");
    let error = ChatTemplate::parse(&source).unwrap().render(&Map::new(), Date::today()).unwrap_err();
    assert!(matches!(error, ChatError::Template { .. } | ChatError::TemplateLimit { .. }), "{error}");
}
