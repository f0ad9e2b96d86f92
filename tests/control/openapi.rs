//! docs/openapi.json is what the code says, and the code does what it says.

use std::collections::BTreeSet;
use std::fmt::Write;

use regex::Regex;
use serde_json::{Value, json};

use super::errors::served;

const DOCUMENT: &str = include_str!("../../docs/openapi.json");

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

#[test]
fn the_document_is_the_codes() {
    let code = leafblk::control::router::document().to_pretty_json().unwrap();
    assert!(
        code.trim() == DOCUMENT.trim(),
        "docs/openapi.json is out of date: run `cargo run -- openapi > docs/openapi.json`"
    );
    assert!(document()["openapi"].as_str().unwrap().starts_with("3.1."));
}

#[test]
fn every_reference_in_the_document_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let (document, mut found) = (document(), BTreeSet::new());
    references(&document, &mut found);
    assert!(found.len() > 5);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn whatever_may_have_to_wait_for_its_turn_says_so() {
    let document = document();
    for (path, item) in document["paths"].as_object().unwrap() {
        // What is the same for every host is answered at once.
        let fixed = ["/v1/version", "/v1/problems", "/v1/problems/{name}", "/v1/openapi.json"];
        for (method, operation) in item.as_object().unwrap() {
            let says = operation["responses"]["503"].is_object();
            assert_eq!(says, !fixed.contains(&path.as_str()), "{method} {path}");
        }
    }
}

/// Whether `value` is within the limits of `schema`; where not, why.
fn check_limits(schema: &Value, value: &Value, at: &str, wrong: &mut String) {
    let mut refuse = |limit: &str| {
        let _ = write!(wrong, "{at}: {value} breaks its {limit}; ");
    };
    if let Some(number) = value.as_i64() {
        let limit = |name: &str| schema[name].as_i64();
        if limit("minimum").is_some_and(|min| number < min) {
            refuse("minimum");
        }
        if limit("maximum").is_some_and(|max| number > max) {
            refuse("maximum");
        }
        if limit("multipleOf").is_some_and(|unit| number % unit != 0) {
            refuse("multipleOf");
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|min| length < min) {
            refuse("minLength");
        }
        if schema["maxLength"].as_u64().is_some_and(|max| length > max) {
            refuse("maxLength");
        }
        let pattern = schema["pattern"].as_str().map(|pattern| Regex::new(pattern).unwrap());
        if pattern.is_some_and(|pattern| !pattern.is_match(text)) {
            refuse("pattern");
        }
    }
}

/// Whether `value` has the shape of `schema`; where not, why.
fn check(document: &Value, schema: &Value, value: &Value, at: &str, wrong: &mut String) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        return check(document, target, value, at, wrong);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = |choice: &&Value| {
            let mut wrong = String::new();
            check(document, choice, value, at, &mut wrong);
            wrong.is_empty()
        };
        if choices.iter().filter(fits).count() != 1 {
            let _ = write!(wrong, "{at}: {value} fits no choice of {schema}; ");
        }
        return;
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => panic!("{at}: a schema without a type: {schema}"),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_number = is == "integer" && types.contains(&"number");
    if !is_number && !types.contains(&is) {
        let _ = write!(wrong, "{at}: {value} is no {types:?}; ");
    }
    if let Some(words) = schema["enum"].as_array().filter(|words| !words.contains(value)) {
        let _ = write!(wrong, "{at}: {value} is none of {words:?}; ");
    }
    check_limits(schema, value, at, wrong);
    if let Value::Array(items) = value {
        items.iter().for_each(|item| check(document, &schema["items"], item, at, wrong));
    }
    if let (Value::Object(fields), Some(known)) = (value, schema["properties"].as_object()) {
        for required in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(required.as_str().unwrap()) {
                let _ = write!(wrong, "{at} lacks {required}; ");
            }
        }
        for (name, field) in fields {
            match known.get(name) {
                Some(schema) => check(document, schema, field, &format!("{at}.{name}"), wrong),
                None => drop(write!(wrong, "{at}.{name} is not described; ")),
            }
        }
    }
}

#[test]
fn a_body_is_called_invalid_where_its_schema_forbids_it_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let document = document();
    let long = "n".repeat(65);
    let vm = |key: &str, value: Value| json!({"name": "x", "root": "nope", key: value});
    let mut bodies = vec![
        ("/v1/vms", json!({})),
        ("/v1/vms", json!({"name": null})),
        ("/v1/vms", json!([])),
        ("/v1/vms/nope/resize", json!({"size": null})),
        ("/v1/vms/nope/resize", json!({})),
    ];
    for name in ["", "a", "0.-_", ".a", "-a", "a/b", "é", "a\n", &long[1..], &long, "control"] {
        bodies.push(("/v1/vms", json!({"name": name, "root": "nope"})));
        bodies.push(("/v1/vms", vm("root", json!(name))));
        bodies.push(("/v1/roots", json!({"name": name, "path": "/nope"})));
    }
    let (path, longest) = (format!("/{long}/{long}"), format!("/{}", "p".repeat(4095)));
    let paths = ["", "/", "a", "/a", "/a/", "/a/..", "/a/.", "/..a", "/.a", "/a\0b", "/é", "//a"];
    for path in paths.into_iter().chain([&path[..], &longest[..4095], &longest]) {
        bodies.push(("/v1/roots", json!({"name": "x", "path": path})));
        bodies.push(("/v1/vms", vm("leaf", json!(path))));
        bodies.push(("/v1/vms", vm("socket", json!(path))));
    }
    let sizes = ["", "0", "0KiB", "1KiB", "1kb", "4G", "1.5GiB", "1024TiB", "1025TiB", "-1KiB"];
    let numbers = [i64::MIN, -1, 0, 1, 511, 512, 513, 1 << 50, (1 << 50) + 512, i64::MAX];
    let sizes = sizes.into_iter().map(Value::from).chain(numbers.map(Value::from));
    for size in sizes.chain([json!(null), json!(true), json!(1.5), json!([])]) {
        bodies.push(("/v1/vms", vm("size", size.clone())));
        bodies.push(("/v1/vms/nope/resize", json!({"size": size})));
    }
    for number in [-1, 0, 1, 64, 65, 512, 1024, 4096] {
        bodies.push(("/v1/vms", vm("queues", json!(number))));
        bodies.push(("/v1/vms", vm("block-size", json!(number))));
    }
    for serial in ["", "a", "a b", " a", "a ", "é", "12345678901234567890", "123456789012345678901"]
    {
        bodies.push(("/v1/vms", vm("serial", json!(serial))));
    }
    for flag in [json!(true), json!(null), json!("yes")] {
        bodies.push(("/v1/vms", vm("readonly", flag.clone())));
        bodies.push(("/v1/vms", vm("unheard-of", flag)));
    }
    let mut refused = 0;
    for (path, body) in &bodies {
        let template = path.replace("nope", "{name}");
        let described = &document["paths"][template]["post"]["requestBody"]["content"];
        let mut wrong = String::new();
        check(&document, &described["application/json"]["schema"], body, path, &mut wrong);
        let answer = control.post(path, body);
        let said = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status == 422, !wrong.is_empty(), "{path} {body}: {wrong} {said}");
        refused += usize::from(answer.status == 422);
    }
    assert!((40..bodies.len() - 40).contains(&refused), "{refused} of {}", bodies.len());
    assert_eq!(control.get("/v1/vms").expect(200).as_array().unwrap().len(), 1);
    daemon.stop();
}

#[test]
fn answers_have_the_status_and_the_shape_that_the_document_promises() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let document = document();
    let image = dir.path().join("root.raw");
    let mut done = BTreeSet::new();
    // Method, path, path in the document, body, status.
    for (method, path, template, body, status) in [
        ("get", "/v1/status", "/v1/status", Value::Null, 200),
        ("get", "/v1/version", "/v1/version", Value::Null, 200),
        ("get", "/v1/health", "/v1/health", Value::Null, 200),
        ("post", "/v1/reload", "/v1/reload", Value::Null, 200),
        ("get", "/v1/problems", "/v1/problems", Value::Null, 200),
        ("get", "/v1/problems/exists", "/v1/problems/{name}", Value::Null, 200),
        ("get", "/v1/problems/x", "/v1/problems/{name}", Value::Null, 404),
        ("get", "/v1/openapi.json", "/v1/openapi.json", Value::Null, 200),
        ("get", "/v1/stats", "/v1/stats", Value::Null, 200),
        ("get", "/metrics", "/metrics", Value::Null, 200),
        ("get", "/v1/vms/web1/map?cells=16", "/v1/vms/{name}/map", Value::Null, 200),
        ("get", "/v1/vms/web1/map?cells=0", "/v1/vms/{name}/map", Value::Null, 400),
        ("get", "/v1/vms/x/map", "/v1/vms/{name}/map", Value::Null, 404),
        ("get", "/v1/roots", "/v1/roots", Value::Null, 200),
        ("post", "/v1/roots", "/v1/roots", json!({"name": "two", "path": image}), 201),
        ("post", "/v1/roots", "/v1/roots", json!({"name": "two", "path": image}), 409),
        ("post", "/v1/roots", "/v1/roots", json!({"name": "x", "path": "/no"}), 409),
        ("post", "/v1/roots", "/v1/roots", json!({"name": "x", "path": "no"}), 422),
        ("get", "/v1/roots/two", "/v1/roots/{name}", Value::Null, 200),
        ("get", "/v1/roots/x", "/v1/roots/{name}", Value::Null, 404),
        ("get", "/v1/roots/two/verify", "/v1/roots/{name}/verify", Value::Null, 200),
        ("post", "/v1/roots/two/verify", "/v1/roots/{name}/verify", Value::Null, 202),
        ("get", "/v1/roots/two/verify", "/v1/roots/{name}/verify", Value::Null, 200),
        ("get", "/v1/roots/x/verify", "/v1/roots/{name}/verify", Value::Null, 404),
        ("post", "/v1/roots/two/verify?new", "/v1/roots/{name}/verify", Value::Null, 400),
        ("delete", "/v1/roots/two/verify", "/v1/roots/{name}/verify", Value::Null, 204),
        ("delete", "/v1/roots/two", "/v1/roots/{name}", Value::Null, 204),
        ("delete", "/v1/roots/debian", "/v1/roots/{name}", Value::Null, 409),
        ("get", "/v1/vms", "/v1/vms", Value::Null, 200),
        ("post", "/v1/vms", "/v1/vms", json!({"name": "two", "ephemeral": true}), 201),
        ("post", "/v1/vms", "/v1/vms", json!({"name": "two"}), 409),
        ("post", "/v1/vms", "/v1/vms", json!({"name": "x", "queues": 0}), 422),
        ("get", "/v1/vms/two", "/v1/vms/{name}", Value::Null, 200),
        ("get", "/v1/vms/x", "/v1/vms/{name}", Value::Null, 404),
        ("get", "/v1/stats", "/v1/stats", Value::Null, 200),
        ("get", "/v1/vms/two/map?cells=4", "/v1/vms/{name}/map", Value::Null, 200),
        ("get", "/v1/vms/two/map?cells=0", "/v1/vms/{name}/map", Value::Null, 400),
        ("get", "/v1/vms/x/map", "/v1/vms/{name}/map", Value::Null, 404),
        ("post", "/v1/vms/two/flush", "/v1/vms/{name}/flush", Value::Null, 204),
        ("post", "/v1/vms/x/flush", "/v1/vms/{name}/flush", Value::Null, 404),
        ("post", "/v1/vms/two/resize", "/v1/vms/{name}/resize", json!({"size": "8MiB"}), 200),
        ("post", "/v1/vms/two/resize", "/v1/vms/{name}/resize", json!({"size": 512}), 409),
        ("post", "/v1/vms/two/resize", "/v1/vms/{name}/resize", json!({"size": 513}), 422),
        ("post", "/v1/vms/two/revert", "/v1/vms/{name}/revert", Value::Null, 200),
        ("post", "/v1/vms/two/new-leaf", "/v1/vms/{name}/new-leaf", Value::Null, 409),
        ("post", "/v1/vms/x/accept-leaf", "/v1/vms/{name}/accept-leaf", Value::Null, 404),
        ("post", "/v1/vms/x/revert", "/v1/vms/{name}/revert", Value::Null, 404),
        ("delete", "/v1/vms/two", "/v1/vms/{name}", Value::Null, 204),
        ("delete", "/v1/vms/two", "/v1/vms/{name}", Value::Null, 404),
    ] {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = control.request(&method.to_uppercase(), path, &text);
        let said = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, status, "{method} {path}: {said}");
        let operation = &document["paths"][template][method];
        let promised = &operation["responses"][status.to_string()];
        assert!(promised.is_object(), "{method} {template} says nothing of {status}");
        done.insert((template.to_owned(), method.to_owned()));
        let Some(content) = promised["content"].as_object() else {
            assert_eq!(said, "", "{method} {path}");
            continue;
        };
        let (kind, content) = content.iter().next().unwrap();
        let said_kind = answer.header("content-type").unwrap();
        assert!(said_kind.starts_with(kind), "{method} {path}: {said_kind}");
        let value = if kind.ends_with("json") { answer.json() } else { json!(said) };
        let mut wrong = String::new();
        check(&document, &content["schema"], &value, path, &mut wrong);
        assert!(wrong.is_empty(), "{method} {path}: {wrong}");
    }
    // Text, whose content tests/seeing.rs looks at.
    let metrics = control.get("/metrics");
    let promised = &document["paths"]["/metrics"]["get"]["responses"]["200"]["content"];
    let kind = metrics.header("content-type").unwrap().split(';').next().unwrap();
    assert!(metrics.status == 200 && promised[kind].is_object(), "{kind}");
    done.insert(("/metrics".to_owned(), "get".to_owned()));
    // None is left out: a new operation comes with its row above.
    let described = document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone()))
    });
    assert_eq!(described.collect::<BTreeSet<_>>(), done);
    daemon.stop();
}
