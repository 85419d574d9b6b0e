//! Server-sent events: a reply as a response body. Whatever is ready goes into one frame, so that a fast model costs one write for
//! many tokens; a silent one says every so often that it is alive, so that no proxy in between gives up. Memory is bounded by one
//! frame: the body is asked for the next only when the connection has taken the last, and a stream that nobody reads stops the
//! model, not the server.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use crate::limits;
use crate::rate_headers;
use crate::reply::{Reply, ReplyEvent};

/// Text of a stream that is put together.
#[derive(Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// `data: {…}`.
    pub(crate) fn data(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        self.json(value);
        self.0.extend_from_slice(b"\n\n");
    }

    /// `event: name` and `data: {…}`.
    pub(crate) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.data(value);
    }

    /// A line of its own, such as `data: [DONE]` or `: still here`.
    pub(crate) fn line(&mut self, line: &str) {
        self.0.extend_from_slice(line.as_bytes());
        self.0.extend_from_slice(b"\n\n");
    }

    fn json(&mut self, value: &impl Serialize) {
        let before = self.0.len();
        // Our own types always serialise; a failure would be a defect, and half an object must not go out.
        if serde_json::to_writer(&mut self.0, value).is_err() {
            self.0.truncate(before);
            self.0.extend_from_slice(b"null");
        }
    }
}

/// Writes an API's events.
pub(crate) trait Encoder: Send {
    /// Before the first event.
    fn begin(&mut self, frames: &mut Frames);
    /// For each event; `Finished` and `Failed` are the last.
    fn encode(&mut self, event: ReplyEvent, frames: &mut Frames);
    /// When there was nothing to say for a while.
    fn heartbeat(&mut self, frames: &mut Frames) {
        frames.line(": still here");
    }
}

struct SseBody {
    reply: Option<Reply>,
    encoder: Box<dyn Encoder>,
    frames: Frames,
    heartbeat: Duration,
    silence: Pin<Box<Sleep>>,
}

impl http_body::Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        while let Some(reply) = &mut this.reply {
            match reply.poll_next(cx) {
                Poll::Pending => break,
                // Dropping the reply here frees its place among the requests in flight before the client has read the end.
                Poll::Ready(None) => this.reply = None,
                Poll::Ready(Some(event)) => this.encoder.encode(event, &mut this.frames),
            }
            if this.frames.0.len() >= limits::SSE_FRAME_BYTES_MAX {
                break;
            }
        }
        if this.frames.0.is_empty() {
            if this.reply.is_none() {
                return Poll::Ready(None);
            }
            if this.silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.encoder.heartbeat(&mut this.frames);
        }
        this.silence.as_mut().reset(Instant::now() + this.heartbeat);
        let frame = Bytes::from(std::mem::take(&mut this.frames.0));
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}

/// The response that streams `reply`.
pub(crate) fn stream(reply: Reply, mut encoder: Box<dyn Encoder>, heartbeat: Duration) -> Response {
    let mut frames = Frames::default();
    let rate_limits = reply.rate_limits();
    encoder.begin(&mut frames);
    let body = SseBody { reply: Some(reply), encoder, frames, heartbeat, silence: Box::pin(sleep(heartbeat)) };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would collect events until its buffer is full.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let mut response = (headers, Body::new(body)).into_response();
    rate_headers::insert(response.headers_mut(), rate_limits);
    response
}
