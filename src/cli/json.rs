//! JSON for machines: the data, its schema, and the error beside it (contract.md, 3).

use std::ffi::OsString;

use serde_json::{Map, Value, json};

use super::error::Failure;

/// Whether the arguments ask for JSON, also where they cannot be parsed: a script wants its usage error as JSON, too.
pub fn wanted(arguments: &[OsString]) -> bool {
    let mut pairs = arguments.windows(2);
    arguments.iter().any(|argument| argument == "--output=json")
        || pairs.any(|pair| matches!(pair, [flag, value] if flag == "--output" && value == "json"))
}

/// One JSON document with a line break behind it.
pub fn render(command: &str, data: Value, failure: Option<&Failure>) -> String {
    let mut document = Map::new();
    document.insert("schema".to_owned(), format!("etcd-dr/{command}/v1").into());
    if let Value::Object(fields) = data {
        // The schema is the answer's own, also where the data carries that of a file.
        document.extend(fields.into_iter().filter(|(name, _)| name != "schema"));
    }
    if let Some(failure) = failure {
        let Failure { code, kind, message, hint } = failure;
        document.insert("error".to_owned(), json!({ "code": code, "kind": kind, "message": message, "hint": hint }));
    }
    let mut text = serde_json::to_string_pretty(&Value::Object(document)).unwrap_or_default();
    text.push('\n');
    text
}
