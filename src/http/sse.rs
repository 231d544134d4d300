//! Server-sent events: answers without an end.
//!
//! What writes the events runs on the process-wide runtime and hands them to the connection's worker over a short channel. A
//! client that does not read holds up only its own stream, and not for ever.

use std::io;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

/// Frames that wait for the client.
const WAITING: usize = 16;
/// How long a client may take to read on.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two comments on a stream that has nothing to say: proxies close what is silent for a minute.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

/// Where a stream's frames go.
pub(super) struct Frames(mpsc::Sender<Bytes>);

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl Frames {
    /// Sends an event; `data` is one line.
    pub(super) async fn event(&self, id: Option<&str>, kind: &str, data: &str) -> Result<(), Gone> {
        let mut frame = String::with_capacity(data.len() + kind.len() + 80);
        if let Some(id) = id {
            frame.push_str("id: ");
            frame.push_str(id);
            frame.push('\n');
        }
        frame.push_str("event: ");
        frame.push_str(kind);
        frame.push_str("\ndata: ");
        frame.push_str(data);
        frame.push_str("\n\n");
        self.send(frame).await
    }

    /// Sends a comment, which shows that the stream lives.
    pub(super) async fn comment(&self) -> Result<(), Gone> {
        self.send(": \n\n".to_owned()).await
    }

    /// Says how long a client waits before it comes again.
    pub(super) async fn retry(&self, after: Duration) -> Result<(), Gone> {
        self.send(format!("retry: {}\n\n", after.as_millis())).await
    }

    async fn send(&self, frame: String) -> Result<(), Gone> {
        match tokio::time::timeout(PATIENCE, self.0.send(Bytes::from(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Returns once the client is gone.
    pub(super) async fn gone(&self) {
        self.0.closed().await;
    }
}

/// A stream and where its frames come from; it ends when they are dropped.
pub(super) fn open() -> (Frames, HttpResponse) {
    let (sender, mut frames) = mpsc::channel(WAITING);
    let body = stream::poll_fn(move |context| frames.poll_recv(context)).map(Ok::<Bytes, io::Error>);
    let response = HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // Asks nginx not to collect the frames.
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(body);
    (Frames(sender), response)
}
