//! The OpenAPI description, made from the same rows that make the router, so that a URL cannot be in one and not in the other.

use axum::Router;
use axum::routing::MethodRouter;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApiBuilder, Ref, RefOr, Required, Schema};

use crate::app::App;
use crate::limits;

/// What a route is for and what goes in and out.
pub(crate) struct Doc {
    summary: &'static str,
    tag: &'static str,
    request: Option<(&'static str, RefOr<Schema>)>,
    response: Option<(&'static str, RefOr<Schema>)>,
    streams: bool,
    says_unready: bool,
    query: &'static [&'static str],
    schemas: Vec<(String, RefOr<Schema>)>,
}

impl Doc {
    /// A route without body.
    pub(crate) fn new(tag: &'static str, summary: &'static str) -> Self {
        Self { summary, tag, request: None, response: None, streams: false, says_unready: false, query: &[], schemas: Vec::new() }
    }

    /// It reads JSON of this type.
    pub(crate) fn reads<T: ToSchema>(mut self) -> Self {
        self.request = Some(("application/json", self.register::<T>()));
        self
    }

    /// It writes JSON of this type.
    pub(crate) fn writes<T: ToSchema>(mut self) -> Self {
        self.response = Some(("application/json", self.register::<T>()));
        self
    }

    /// It writes text of this type.
    pub(crate) fn writes_text(mut self, content_type: &'static str) -> Self {
        self.response = Some((content_type, Object::with_type(SchemaType::Type(Type::String)).into()));
        self
    }

    /// With `"stream": true` it answers with server-sent events.
    pub(crate) fn streams(mut self) -> Self {
        self.streams = true;
        self
    }

    /// Where the server is not ready it answers the same with status 503.
    pub(crate) fn says_unready(mut self) -> Self {
        self.says_unready = true;
        self
    }

    /// It reads a form with a file.
    pub(crate) fn reads_form(mut self, fields: &[&str]) -> Self {
        let text = || Object::with_type(SchemaType::Type(Type::String));
        let form = fields.iter().fold(ObjectBuilder::new(), |form, field| form.property(*field, text()).required(*field));
        self.request = Some(("multipart/form-data", form.into()));
        self
    }

    /// Its URL may hold these.
    pub(crate) fn lists(mut self, query: &'static [&'static str]) -> Self {
        self.query = query;
        self
    }

    fn register<T: ToSchema>(&mut self) -> RefOr<Schema> {
        self.schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(&mut self.schemas);
        Ref::from_schema_name(T::name()).into()
    }
}

/// Routes with their descriptions, as they are added.
pub(crate) struct Api {
    router: Router<App>,
    paths: PathsBuilder,
    components: ComponentsBuilder,
}

/// A verb with the handler for it.
pub(crate) type Verb = (HttpMethod, MethodRouter<App>);

impl Api {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { router: Router::new(), paths: PathsBuilder::new(), components: ComponentsBuilder::new() }
    }

    /// Adds a route.
    pub(crate) fn route(mut self, url: &'static str, (method, handler): Verb, doc: Doc) -> Self {
        self.router = self.router.route(url, handler);
        let path = url.replace("{*", "{");
        let operation_id = format!("{}{}", method_name(&method), path.replace(['/', '{', '}', '.'], "_"));
        let mut operation = OperationBuilder::new().summary(Some(doc.summary)).tag(doc.tag).operation_id(Some(operation_id));
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let text = Object::with_type(SchemaType::Type(Type::String));
            let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True).schema(Some(text));
            operation = operation.parameter(parameter);
        }
        for name in doc.query {
            let parameter = ParameterBuilder::new().name(*name).parameter_in(ParameterIn::Query).required(Required::False);
            operation = operation.parameter(parameter.schema(Some(query_schema(name))));
        }
        if let Some((content_type, schema)) = doc.request {
            let body = RequestBodyBuilder::new().content(content_type, ContentBuilder::new().schema(Some(schema)).build());
            operation = operation.request_body(Some(body.required(Some(Required::True)).build()));
        }
        let mut success = ResponseBuilder::new().description("done");
        if let Some((content_type, schema)) = doc.response {
            success = success.content(content_type, ContentBuilder::new().schema(Some(schema)).build());
        }
        if doc.streams {
            success = success.content("text/event-stream", ContentBuilder::new().schema(Some(event_schema())).build());
        }
        let success = success.build();
        if doc.says_unready {
            let mut unready = success.clone();
            unready.description = "not ready".into();
            operation = operation.response("503", unready);
        }
        let refusal = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
        let refusal = ResponseBuilder::new().description("refused or failed").content("application/json", refusal);
        operation = operation.response("200", success).response("default", refusal);
        self.paths = self.paths.path(path, PathItem::new(method, operation));
        for (name, schema) in doc.schemas {
            self.components = self.components.schema(name, schema);
        }
        self
    }

    /// The router, and the description as JSON.
    pub(crate) fn finish(self) -> (Router<App>, Value) {
        let info = InfoBuilder::new().title("bitnet").version(env!("CARGO_PKG_VERSION")).description(Some(
            "Ternary language models behind the APIs of OpenAI and Anthropic. Parameters are honoured or refused by name.",
        ));
        let components = self.components.schema("Error", error_schema()).build();
        let openapi = OpenApiBuilder::new().info(info).paths(self.paths).components(Some(components)).build();
        (self.router, serde_json::to_value(&openapi).unwrap_or_else(|_| json!({})))
    }
}

fn method_name(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "get",
        HttpMethod::Post => "post",
        HttpMethod::Delete => "delete",
        _ => "other",
    }
}

/// What may stand in a list's URL.
fn query_schema(name: &str) -> Schema {
    match name {
        "limit" => {
            let number = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer));
            number.minimum(Some(1)).maximum(Some(limits::N_LISTED_MAX)).into()
        }
        "order" => ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some(["asc", "desc"])).into(),
        _ => Object::with_type(SchemaType::Type(Type::String)).into(),
    }
}

/// One of the events of a stream.
fn event_schema() -> Schema {
    let text = |description: &str| ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).description(Some(description));
    let event = ObjectBuilder::new()
        .property("event", text("What kind it is, where kinds have names"))
        .property("data", text("JSON, or at the end `[DONE]`"));
    event.description(Some("One of the events")).into()
}

/// The body of a refusal, in OpenAI's notation.
fn error_schema() -> RefOr<Schema> {
    let text = || Object::with_type(SchemaType::Type(Type::String));
    let detail = ObjectBuilder::new().property("message", text()).required("message").property("type", text()).required("type");
    ObjectBuilder::new().property("error", detail).required("error").into()
}
