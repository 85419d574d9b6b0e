//! Documentation: guides for people, and the reference, which is the OpenAPI description as pages.

use std::collections::BTreeSet;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::Value;

use crate::error::PlatformError;
use crate::portal::Portal;
use crate::portal::account::model_views;
use crate::portal::guard::Visit;
use crate::portal::page::{PortalError, Shell, show};

type Answer = Result<Response, PortalError>;

/// Guides by their name in the URL: title and what it is about.
const GUIDES: &[(&str, &str, &str)] = &[
    ("quickstart", "Quickstart", "From nothing to a first answer in three steps."),
    ("keys", "Keys and scopes", "What a key may do, how it ends, and how to replace one without an outage."),
    ("streaming", "Streaming", "Answers as they are written, and what happens when you leave."),
    ("errors", "Errors and limits", "What a refusal says, when to wait, and when to pay."),
    ("usage", "Usage, costs and invoices", "Reading your own metering from a program."),
    ("security", "Security", "Second factors, roles, the audit log, and what we keep of your secrets."),
];

#[derive(Template)]
#[template(path = "portal/guides.html")]
struct GuidesPage<'a> {
    shell: Shell<'a>,
    guides: &'static [(&'static str, &'static str, &'static str)],
}

/// All guides.
pub(super) async fn index(visit: Visit) -> Answer {
    show(&GuidesPage { shell: Shell::new(&visit, "Guides", "guides")?, guides: GUIDES })
}

#[derive(Template)]
#[template(path = "portal/guide.html")]
struct GuidePage<'a> {
    shell: Shell<'a>,
    guides: &'static [(&'static str, &'static str, &'static str)],
    name: String,
    lead: &'static str,
    base: &'a str,
    model: String,
}

/// One of them.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit, Path(name): Path<String>) -> Answer {
    let unknown = PortalError(PlatformError::NotFound { what: "guide" });
    let (_, title, lead) = GUIDES.iter().find(|(known, ..)| *known == name).ok_or(unknown)?;
    let models = model_views(&portal).await?;
    let model = models.iter().find(|model| model.is_text).map_or_else(|| "MODEL".into(), |model| model.name.clone());
    let shell = Shell::new(&visit, *title, "guides")?;
    show(&GuidePage { shell, guides: GUIDES, name, lead, base: portal.public_url(), model })
}

struct OperationView {
    id: String,
    method: String,
    path: String,
    summary: String,
}

struct TagView {
    tag: String,
    operations: Vec<OperationView>,
}

#[derive(Template)]
#[template(path = "portal/reference.html")]
struct ReferencePage<'a> {
    shell: Shell<'a>,
    tags: Vec<TagView>,
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Every operation of the description, with its path and method.
fn operations(api: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = api["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, item)| item.as_object().into_iter().flatten().map(move |(method, operation)| (path, method, operation)))
}

/// The API, by what it is for.
pub(super) async fn reference(State(portal): State<Portal>, visit: Visit) -> Answer {
    let mut tags: Vec<TagView> = Vec::new();
    for (path, method, operation) in operations(portal.openapi()) {
        let tag = text_at(operation, "/tags/0").to_string();
        let (id, summary) = (text_at(operation, "/operationId").to_string(), text_at(operation, "/summary").to_string());
        let view = OperationView { id, method: method.to_uppercase(), path: path.clone(), summary };
        match tags.iter_mut().find(|known| known.tag == tag) {
            Some(known) => known.operations.push(view),
            None => tags.push(TagView { tag, operations: vec![view] }),
        }
    }
    tags.sort_by_key(|tag| std::cmp::Reverse(tag.operations.len()));
    show(&ReferencePage { shell: Shell::new(&visit, "API reference", "reference")?, tags })
}

struct FieldView {
    name: String,
    kind: String,
    is_required: bool,
    about: String,
}

struct SchemaView {
    title: String,
    anchor: String,
    fields: Vec<FieldView>,
}

#[derive(Template)]
#[template(path = "portal/operation.html")]
struct OperationPage<'a> {
    shell: Shell<'a>,
    method: String,
    path: String,
    parameters: Vec<FieldView>,
    reads: Vec<SchemaView>,
    writes: Vec<SchemaView>,
    streams: bool,
}

/// What a schema is, in a word or two; `seen` collects the names that it mentions.
fn kind_of(schema: &Value, seen: &mut Vec<String>) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        seen.push(name.to_string());
        return name.to_string();
    }
    for list in ["oneOf", "anyOf", "allOf"] {
        if let Some(options) = schema[list].as_array() {
            let mut kinds: Vec<String> = options.iter().map(|option| kind_of(option, seen)).filter(|kind| kind != "null").collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect(),
        _ => vec!["any"],
    };
    let kind = names.join(" or ");
    if kind == "array" { format!("list of {}", kind_of(&schema["items"], seen)) } else { kind }
}

fn fields_of(schema: &Value, seen: &mut Vec<String>) -> Vec<FieldView> {
    let required: BTreeSet<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let field = |(name, value): (&String, &Value)| FieldView {
        name: name.clone(),
        kind: kind_of(value, seen),
        is_required: required.contains(name.as_str()),
        about: text_at(value, "/description").to_string(),
    };
    schema["properties"].as_object().into_iter().flatten().map(field).collect()
}

/// Most schemas of one page.
const N_SCHEMAS_MAX: usize = 40;

/// A schema and those that it mentions, each once.
fn schemas_of(api: &Value, schema: &Value) -> Vec<SchemaView> {
    let mut waiting = Vec::new();
    let mut views = Vec::new();
    if schema["$ref"].is_null() {
        let fields = fields_of(schema, &mut waiting);
        views.extend((!fields.is_empty()).then(|| SchemaView { title: "Body".into(), anchor: "body".into(), fields }));
    }
    kind_of(schema, &mut waiting);
    let mut done = BTreeSet::new();
    while let Some(name) = waiting.first().cloned() {
        waiting.remove(0);
        if !done.insert(name.clone()) || views.len() >= N_SCHEMAS_MAX {
            continue;
        }
        let found = &api["components"]["schemas"][&name];
        let mut mentioned = Vec::new();
        let mut fields = fields_of(found, &mut mentioned);
        for part in ["oneOf", "anyOf", "allOf"].into_iter().flat_map(|list| found[list].as_array().into_iter().flatten()) {
            kind_of(part, &mut mentioned);
            fields.extend(fields_of(part, &mut mentioned));
        }
        waiting.extend(mentioned);
        views.extend((!fields.is_empty()).then(|| SchemaView { anchor: name.clone(), title: name, fields }));
    }
    views
}

/// One operation.
pub(super) async fn operation(State(portal): State<Portal>, visit: Visit, Path(id): Path<String>) -> Answer {
    let api = portal.openapi();
    let found = operations(api).find(|(_, _, operation)| text_at(operation, "/operationId") == id);
    let (path, method, operation) = found.ok_or(PortalError(PlatformError::NotFound { what: "operation" }))?;
    let parameter = |value: &Value| FieldView {
        name: text_at(value, "/name").to_string(),
        kind: format!("{}, in the {}", kind_of(&value["schema"], &mut Vec::new()), text_at(value, "/in")),
        is_required: value["required"].as_bool() == Some(true),
        about: text_at(value, "/description").to_string(),
    };
    let schema_in = |content: &Value| {
        let first = content.as_object().and_then(|kinds| kinds.iter().find(|(kind, _)| *kind != "text/event-stream"));
        first.map(|(_, media)| schemas_of(api, &media["schema"])).unwrap_or_default()
    };
    let page = OperationPage {
        shell: Shell::new(&visit, text_at(operation, "/summary"), "reference")?,
        method: method.to_uppercase(),
        path: path.clone(),
        parameters: operation["parameters"].as_array().into_iter().flatten().map(parameter).collect(),
        reads: schema_in(&operation["requestBody"]["content"]),
        writes: schema_in(&operation["responses"]["200"]["content"]),
        streams: operation.pointer("/responses/200/content/text~1event-stream").is_some(),
    };
    show(&page)
}
