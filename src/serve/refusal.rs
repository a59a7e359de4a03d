//! What a client is told when it is not served: a status and a JSON error.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::Error;

/// A request that is not served, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// One line that says what is wrong, and what would be right.
    pub message: String,
    /// The field that is wrong, where it is one.
    pub param: Option<String>,
}

impl Refusal {
    /// An answer with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Refusal { status, message: message.into(), param: None }
    }

    /// A request that cannot be.
    pub fn bad(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of a request that cannot be.
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        Refusal { param: Some(param.to_owned()), ..Refusal::bad(message) }
    }

    /// Something that is not there.
    pub fn missing(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::NOT_FOUND, message)
    }

    /// A queue that holds no more.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, message)
    }

    /// The server is about to end.
    pub fn closing() -> Self {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down; try again when it is back")
    }

    /// An error of the server's own.
    pub fn own(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The error as JSON.
    pub fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => "overloaded",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": null}})
    }
}

/// What an edit's request met: what it asked for is the client's to put right, what the disk says is not.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { .. } | Error::File { .. } => Refusal::own(error.to_string()),
            other => Refusal::bad(other.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
