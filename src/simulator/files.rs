//! Files that came with messages, under `/api/files/{session}/{id}.{ext}`: there for a while, and in trouble on demand.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answers::{Answer, Body, Served};
use super::mailbox::Entry;
use super::saying::{FilePlan, SaidFile};
use super::world::{World, lock};

/// How long WAHA keeps a file.
const LIFETIME_MS: u64 = 180_000;
/// The host that WAHA names when nobody told it its own.
const FOREIGN_HOST: &str = "http://localhost:3000";

/// The files of one server, by session and name.
pub(super) struct Files {
    all: Mutex<HashMap<String, Stored>>,
    lifetime_ms: AtomicU64,
}

struct Stored {
    bytes: Bytes,
    mimetype: String,
    plan: FilePlan,
    /// Milliseconds since 1970 of its end; none while it was never there.
    until: Option<i64>,
    refused: u32,
}

impl Default for Files {
    fn default() -> Self {
        Self { all: Mutex::default(), lifetime_ms: AtomicU64::new(LIFETIME_MS) }
    }
}

impl Files {
    pub fn live_for(&self, lifetime: Duration) {
        self.lifetime_ms.store(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Keeps a message's file, which nobody can fetch yet; its path below `/api/files/`.
    pub fn keep(&self, session: &str, id: &str, file: &SaidFile) -> String {
        let path = format!("{session}/{id}.{}", extension(&file.mimetype, file.filename.as_deref()));
        let mimetype = file.plan.mimetype.clone().unwrap_or_else(|| file.mimetype.clone());
        let stored = Stored { bytes: file.bytes.clone(), mimetype, plan: file.plan.clone(), until: None, refused: 0 };
        lock(&self.all).insert(path.clone(), stored);
        path
    }

    /// WAHA fetched the file (`again`: once more, since somebody asked): it is there for its lifetime, unless its plan says
    /// otherwise. Answers the members that a URL depends on.
    fn offer(&self, world: &World, path: &str, again: bool) -> Option<(String, bool, bool)> {
        let mut all = lock(&self.all);
        let stored = all.get_mut(path)?;
        let there = !stored.plan.lost && (again || !stored.plan.no_url);
        if there {
            let lifetime = stored.plan.lifetime_ms.unwrap_or_else(|| self.lifetime_ms.load(Ordering::Relaxed));
            let lifetime = world.scaled(Duration::from_millis(lifetime));
            let lifetime = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
            stored.until = Some(world.now().timestamp_millis().saturating_add(lifetime));
        }
        Some((stored.mimetype.clone(), there, stored.plan.foreign_host))
    }
}

/// `media` of a message, whose file is there from now on; none when it has none, or WAHA has not its bytes.
pub(super) fn media_of(world: &World, entry: &Entry, again: bool) -> Option<Value> {
    let path = entry.more.as_deref()?.file.as_deref()?;
    let (mimetype, there, foreign) = world.files.offer(world, path, again)?;
    let filename = entry.content.as_deref().and_then(|content| content.file.as_ref()?.filename.clone());
    let mut media = json!({"url": null, "filename": filename, "mimetype": mimetype});
    if let Some(members) = media.as_object_mut() {
        if there {
            let host = if foreign { FOREIGN_HOST } else { &world.base_url };
            members.insert("url".to_owned(), json!(format!("{host}/api/files/{path}")));
        } else {
            let error = json!({"message": "Failed to download media", "details": "Timed Out"});
            members.insert("error".to_owned(), error);
        }
    }
    Some(media)
}

/// A file that is asked for.
pub(super) async fn answer(world: &World, path: &str) -> Answer {
    let now = world.now().timestamp_millis();
    let (served, slow) = {
        let mut all = lock(&world.files.all);
        let Some(stored) = all.get_mut(path).filter(|stored| stored.until.is_some_and(|until| now < until)) else {
            let error = json!({"error": {"code": 404, "key": "FILE_NOT_FOUND", "message": "File not found"}});
            return Answer::of(404, &error);
        };
        if stored.refused < stored.plan.refusals {
            stored.refused += 1;
            return Answer::nest(403, "Forbidden");
        }
        let served = Served {
            bytes: stored.bytes.clone(),
            mimetype: stored.mimetype.clone(),
            length: stored.plan.claimed.unwrap_or(0).max(stored.bytes.len() as u64),
        };
        (served, stored.plan.slow_ms)
    };
    if slow > 0 {
        world.clock.sleep(Duration::from_millis(slow)).await;
    }
    Answer { status: 200, body: Body::File(served) }
}

/// What WAHA puts after the dot.
fn extension<'a>(mimetype: &'a str, filename: Option<&'a str>) -> &'a str {
    match mimetype.split(';').next().unwrap_or(mimetype) {
        "image/jpeg" => "jpeg",
        "image/png" => "png",
        "image/webp" => "webp",
        "video/mp4" => "mp4",
        "audio/ogg" => "oga",
        "application/pdf" => "pdf",
        _ => filename.and_then(|name| name.rsplit_once('.')).map_or("bin", |(_, extension)| extension),
    }
}
