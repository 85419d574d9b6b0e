//! `GET /v1/models` and `GET /v1/models/{id}`: what can serve right now.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Context};
use crate::error::ServerError;
use crate::models::ServedModel;

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    pub object: &'static str,
    pub data: Vec<Model>,
}

/// One model; `max_model_len` is vLLM's name for the context.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    pub id: String,
    pub object: &'static str,
    pub created: i64,
    pub owned_by: &'static str,
    pub max_model_len: usize,
}

impl From<&ServedModel> for Model {
    fn from(model: &ServedModel) -> Self {
        Self {
            id: model.name.clone(),
            object: "model",
            created: model.created_unix_seconds,
            owned_by: "bitnet",
            max_model_len: model.context_length,
        }
    }
}

/// Lists the models.
pub(crate) async fn list(State(app): State<App>, _: Context) -> Json<ModelList> {
    let data = app.models().all().iter().map(|model| Model::from(model.as_ref())).collect();
    Json(ModelList { object: "list", data })
}

/// Tells of one; names such as `hf:owner/model` have slashes.
pub(crate) async fn get(State(app): State<App>, _: Context, Path(id): Path<String>) -> Result<Json<Model>, ServerError> {
    app.models().get(&id).map(|model| Json(Model::from(model.as_ref())))
}
