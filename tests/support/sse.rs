//! Reading server-sent events.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// One frame; comments are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub id: String,
    pub event: String,
    pub data: String,
}

impl Frame {
    /// The data as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|fault| panic!("{fault}: {:?}", self.data))
    }
}

/// An open stream.
pub struct Stream {
    response: reqwest::Response,
    rest: String,
    frames: VecDeque<Frame>,
}

impl Stream {
    /// Opens the stream that `request` asks for.
    pub async fn open(request: reqwest::RequestBuilder) -> Self {
        let response = request.timeout(Duration::from_secs(120)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, rest: String::new(), frames: VecDeque::new() }
    }

    /// The next frame; `None` when the stream has ended. Panics when neither comes.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("a frame in time");
            // A stream that is cut off has ended, too.
            let chunk = chunk.ok().flatten()?;
            self.rest.push_str(std::str::from_utf8(&chunk).unwrap());
            while let Some((frame, rest)) = self.rest.split_once("\n\n") {
                let mut read = Frame::default();
                for line in frame.lines() {
                    match line.split_once(": ") {
                        Some(("id", value)) => read.id = value.to_owned(),
                        Some(("event", value)) => read.event = value.to_owned(),
                        Some(("data", value)) => read.data = value.to_owned(),
                        _ => {}
                    }
                }
                self.rest = rest.to_owned();
                if !read.event.is_empty() {
                    self.frames.push_back(read);
                }
            }
        }
    }

    /// The first frame from here on that is as wanted.
    pub async fn wait(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("the stream ended before {what}"));
            if wanted(&frame) {
                return frame;
            }
        }
    }
}
