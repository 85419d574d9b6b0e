//! Passkeys on pages: registering one in the profile, signing in by one. A script asks the browser and fills a form in; the form is sent
//! as every other is.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::PlatformError;
use crate::identity::Answered;
use crate::portal::Portal;
use crate::portal::entry::{arrived, log_in_form};
use crate::portal::guard::Visit;
use crate::portal::page::{Fault, PortalError, id_of, redirect};
use crate::portal::profile::profile;

type Answer = Result<Response, PortalError>;

fn answered(visit: &Visit) -> Answered<'_> {
    Answered {
        client_data: visit.field("client_data"),
        device_data: visit.field("device_data"),
        credential: visit.field("credential"),
        person: visit.field("person"),
        signature: visit.field("signature"),
    }
}

/// Options for the browser, or a sentence that the script shows.
fn options(begun: Result<Value, PlatformError>) -> Answer {
    match begun {
        Ok(options) => Ok(Json(options).into_response()),
        // It is the script's to read: the server writes what is refused to programs in its own shape.
        Err(error) => Ok(Json(json!({ "error": PortalError(error).fault()?.text })).into_response()),
    }
}

/// Begins to register one.
pub(super) async fn begin(State(portal): State<Portal>, visit: Visit) -> Answer {
    options(portal.identity().begin_passkey(&visit.person()?.person, visit.secret("password"), &visit.whence).await)
}

/// Registers it.
pub(super) async fn add(State(portal): State<Portal>, visit: Visit) -> Answer {
    match portal.identity().add_passkey(&visit.person()?.person, (visit.field("name"), answered(&visit)), &visit.whence).await {
        Ok(()) => Ok(redirect("/profile?said=passkey")),
        Err(error) => profile(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

/// Takes one away.
pub(super) async fn remove(State(portal): State<Portal>, visit: Visit, Path(passkey): Path<String>) -> Answer {
    portal.platform().store().remove_passkey((visit.person()?.person.id, id_of(&passkey)?), visit.by()).await?;
    Ok(redirect("/profile?said=passkey-gone"))
}

/// Begins to sign somebody in.
pub(super) async fn begin_sign_in(State(portal): State<Portal>, visit: Visit) -> Answer {
    options(portal.identity().begin_passkey_sign_in(&visit.whence).await)
}

/// Signs somebody in.
pub(super) async fn sign_in(State(portal): State<Portal>, visit: Visit) -> Answer {
    match portal.identity().passkey_sign_in(answered(&visit), &visit.whence).await {
        Ok(signed_in) => Ok(arrived(&portal, &signed_in, visit.field("next"))),
        Err(PlatformError::Credentials) => {
            let text = "This passkey opens nothing here, or it took too long: try again, or sign in by your password.".to_string();
            log_in_form(&portal, &visit, Some(Fault { status: StatusCode::UNAUTHORIZED, text }))
        }
        Err(error) => log_in_form(&portal, &visit, Some(PortalError(error).fault()?)),
    }
}
