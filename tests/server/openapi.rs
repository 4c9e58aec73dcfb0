//! `GET /openapi.json`: complete, and whole in itself. What it says of answers is checked by schemathesis
//! (`tests/clients/schemathesis.sh`).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Server;
use crate::http::get;

fn references<'v>(value: &'v Value, found: &mut BTreeSet<&'v str>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|member| references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_route_is_described_and_every_reference_leads_somewhere() {
    let server = Server::start(&[]);
    let (status, document) = get(server.addr, "/openapi.json");
    assert_eq!((status, document["openapi"].as_str()), (200, Some("3.1.0")));
    let described: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
        })
        .collect();
    let source = include_str!("../../src/server/mod.rs");
    let routed: BTreeSet<String> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix(".route(\""))
        // The status page is for people.
        .filter(|line| !line.starts_with("/\"") && !line.contains("page::"))
        .map(|line| {
            let (path, handler) = line.split_once("\", ").unwrap();
            let (method, _) = handler.split_once('(').unwrap();
            format!("{method} {}", path.replace("{*name}", "{model}"))
        })
        .collect();
    assert_eq!(described, routed);
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let loading = Server::start_loading(&[]);
    assert_eq!(get(loading.addr, "/openapi.json").0, 200);
}
