//! Every URL of the server, and what answers it. Nothing else in the crate knows a URL, but for the pages and the dialect of errors.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::response::Json;
use axum::routing::{delete, get, post};
use serde_json::Value;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::path::HttpMethod::{Delete, Get, Post};

use crate::anthropic::{messages, wire};
use crate::app::App;
use crate::config::Presence;
use crate::listing::PAGE_QUERY;
use crate::openai::{batches, chat, chat_request, completions, embeddings, file_routes, model_list, response_wire, responses};
use crate::openapi::{Api, Doc};
use crate::{health, layers, limits, metrics, pages, tokens};

const CHAT: &str = "text";
const FILES: &str = "files and batches";
const OPERATIONS: &str = "operations";

/// The whole server as a service.
pub fn router(app: App) -> Router {
    router_with(app, Router::new())
}

/// The same, with routes that somebody else answers, behind the same layers.
pub fn router_with(app: App, mounted: Router<App>) -> Router {
    let (routes, openapi) = described(app.config().chat_page);
    let routes = routes.route("/openapi.json", get(move || std::future::ready(Json(openapi.clone()))));
    let routes = routes.merge(mounted).fallback(layers::unknown_route).method_not_allowed_fallback(layers::unknown_method);
    let routes = routes.layer(CatchPanicLayer::custom(layers::panicked));
    let routes = match layers::cors(&app.config().cors_origins) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    // Bodies are bounded where they are read, and forms by their route.
    routes.layer(DefaultBodyLimit::disable()).layer(from_fn_with_state(app.clone(), layers::identify)).with_state(app)
}

/// The description alone.
pub fn openapi() -> Value {
    described(Presence::Off).1
}

fn described(chat_page: Presence) -> (Router<App>, Value) {
    let api = operations(files(text(Api::new())));
    let api = match chat_page {
        Presence::On => api.route("/", (Get, get(pages::chat)), Doc::new(OPERATIONS, "A page to try the models").writes_text("text/html")),
        Presence::Off => api,
    };
    api.finish()
}

fn text(api: Api) -> Api {
    use crate::anthropic::wire::{CountedTokens, MessageReply};
    api.route(
        "/v1/chat/completions",
        (Post, post(chat::create)),
        Doc::new(CHAT, "Answer a conversation").reads::<chat_request::ChatRequest>().writes::<chat::ChatCompletion>().streams(),
    )
    .route(
        "/v1/completions",
        (Post, post(completions::create)),
        Doc::new(CHAT, "Continue a text").reads::<completions::CompletionRequest>().writes::<completions::Completion>().streams(),
    )
    .route(
        "/v1/embeddings",
        (Post, post(embeddings::create)),
        Doc::new(CHAT, "Texts to vectors").reads::<embeddings::EmbeddingRequest>().writes::<embeddings::EmbeddingList>(),
    )
    .route(
        "/v1/responses",
        (Post, post(responses::create)),
        Doc::new(CHAT, "Answer, and keep the answer")
            .reads::<response_wire::ResponseRequest>()
            .writes::<response_wire::ResponseObject>()
            .streams(),
    )
    .route("/v1/responses/{id}", (Get, get(responses::get)), Doc::new(CHAT, "A kept answer").writes::<response_wire::ResponseObject>())
    .route(
        "/v1/responses/{id}",
        (Delete, delete(responses::delete)),
        Doc::new(CHAT, "Forget a kept answer").writes::<response_wire::DeletedResponse>(),
    )
    .route(
        "/v1/responses/{id}/input_items",
        (Get, get(responses::input_items)),
        Doc::new(CHAT, "What a kept answer answers").lists(PAGE_QUERY).writes::<response_wire::InputItemList>(),
    )
    .route(
        "/v1/messages",
        (Post, post(messages::create)),
        Doc::new(CHAT, "Answer, in Anthropic's notation").reads::<wire::MessagesRequest>().writes::<MessageReply>().streams(),
    )
    .route(
        "/v1/messages/count_tokens",
        (Post, post(messages::count_tokens)),
        Doc::new(CHAT, "How long a conversation is").reads::<wire::CountTokensRequest>().writes::<CountedTokens>(),
    )
    .route("/v1/models", (Get, get(model_list::list)), Doc::new(CHAT, "All models").writes::<model_list::ModelList>())
    .route("/v1/models/{*model}", (Get, get(model_list::get)), Doc::new(CHAT, "One model").writes::<model_list::Model>())
    .route(
        "/tokenize",
        (Post, post(tokens::tokenize)),
        Doc::new(CHAT, "Text to tokens").reads::<tokens::TokenizeRequest>().writes::<tokens::Tokenized>(),
    )
    .route(
        "/detokenize",
        (Post, post(tokens::detokenize)),
        Doc::new(CHAT, "Tokens to text").reads::<tokens::DetokenizeRequest>().writes::<tokens::Detokenized>(),
    )
}

fn files(api: Api) -> Api {
    api.route(
        "/v1/files",
        (Post, post(file_routes::upload).layer(DefaultBodyLimit::max(limits::FILE_BYTES_MAX + limits::FORM_BYTES_MAX))),
        Doc::new(FILES, "Keep a file of batch lines").reads_form(&["file", "purpose"]).writes::<file_routes::FileObject>(),
    )
    .route(
        "/v1/files",
        (Get, get(file_routes::list)),
        Doc::new(FILES, "Files, newest first").lists(&["after", "limit", "order", "purpose"]).writes::<file_routes::FileList>(),
    )
    .route("/v1/files/{id}", (Get, get(file_routes::get)), Doc::new(FILES, "About a file").writes::<file_routes::FileObject>())
    .route("/v1/files/{id}", (Delete, delete(file_routes::delete)), Doc::new(FILES, "Forget a file").writes::<file_routes::DeletedFile>())
    .route("/v1/files/{id}/content", (Get, get(file_routes::content)), Doc::new(FILES, "A file").writes_text("application/jsonl"))
    .route(
        "/v1/batches",
        (Post, post(batches::create)),
        Doc::new(FILES, "Answer all lines of a file").reads::<batches::BatchRequest>().writes::<batches::BatchObject>(),
    )
    .route(
        "/v1/batches",
        (Get, get(batches::list)),
        Doc::new(FILES, "Batches, newest first").lists(PAGE_QUERY).writes::<batches::BatchList>(),
    )
    .route("/v1/batches/{id}", (Get, get(batches::get)), Doc::new(FILES, "About a batch").writes::<batches::BatchObject>())
    .route("/v1/batches/{id}/cancel", (Post, post(batches::cancel)), Doc::new(FILES, "Stop a batch").writes::<batches::BatchObject>())
}

fn operations(api: Api) -> Api {
    let doc = |summary| Doc::new(OPERATIONS, summary);
    api.route("/health", (Get, get(health::health)), doc("How the server is").writes::<health::Health>().says_unready())
        .route("/health/live", (Get, get(health::live)), doc("The process answers").writes::<health::Liveness>())
        .route("/health/ready", (Get, get(health::ready)), doc("Requests are welcome").writes::<health::Readiness>().says_unready())
        .route("/v2/health/live", (Get, get(health::live)), doc("The process answers (KServe)").writes::<health::Liveness>())
        .route(
            "/v2/health/ready",
            (Get, get(health::ready)),
            doc("Requests are welcome (KServe)").writes::<health::Readiness>().says_unready(),
        )
        .route(
            "/v2/models/{model}/ready",
            (Get, get(health::model_ready)),
            doc("A model can serve (KServe)").writes::<health::ModelReadiness>().says_unready(),
        )
        .route("/metrics", (Get, get(metrics::exposition)), doc("Counters for Prometheus").writes_text("text/plain"))
        .route("/docs", (Get, get(pages::docs)), doc("This description, to read").writes_text("text/html"))
}
