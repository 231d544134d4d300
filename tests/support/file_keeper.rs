//! A WAHA server that keeps files of messages, and does with them what it is told.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The key it takes.
pub const KEY: &str = "key-of-the-files";

const PIECE: usize = 64 * 1024;

/// How a request for a file is answered.
#[derive(Clone)]
pub enum Reply {
    /// With these bytes, said to be of this type.
    File(&'static str, Bytes),
    /// With this status.
    Status(u16),
    /// Elsewhere.
    Redirect(String),
    /// With a length that is never reached.
    Claims(u64),
    /// With so many zeros.
    Zeros(usize),
    /// With bytes that never end.
    Endless,
    /// With these bytes, once [`FileKeeper::release`] was called.
    Held(Bytes),
}

/// A request that came in.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Path and query.
    pub path: String,
    /// The key that came with it.
    pub key: Option<String>,
}

#[derive(Default)]
struct Script {
    files: HashMap<String, VecDeque<Reply>>,
    messages: VecDeque<Option<Value>>,
    answered_with_the_last: bool,
    asked: Vec<Asked>,
}

struct Shared {
    engine: String,
    script: Mutex<Script>,
    released: watch::Sender<bool>,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server; it stops when dropped.
pub struct FileKeeper {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: actix_web::dev::ServerHandle,
}

impl FileKeeper {
    /// A WAHA of this engine that listens on a free port and keeps nothing.
    pub fn start(engine: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            engine: engine.to_owned(),
            script: Mutex::default(),
            released: watch::Sender::new(false),
        });
        let data = web::Data::from(Arc::clone(&shared));
        let (started, start) = std::sync::mpsc::channel();
        // On a thread of its own: a test that keeps its runtime busy must not slow the server.
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server =
                    HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(answer)))
                        .workers(1)
                        .disable_signals()
                        .listen(listener)
                        .unwrap()
                        .run();
                started.send(server.handle()).unwrap();
                server.await.unwrap();
            });
        });
        let server = start.recv().unwrap();
        Self { address, shared, server }
    }

    /// The address of `path` here.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers requests for `path` so, one after the other; the last reply stays.
    pub fn file(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        self.shared.script().files.insert(path.to_owned(), replies.into_iter().collect());
    }

    /// Answers the next request for a message so: `None` says that there is none. The last one stays until there is another.
    pub fn message(&self, answer: Option<Value>) {
        let mut script = self.shared.script();
        if std::mem::take(&mut script.answered_with_the_last) {
            script.messages.clear();
        }
        script.messages.push_back(answer);
    }

    /// Lets go of what is held.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// What was asked, oldest first, but for the server itself.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.script().asked.clone()
    }
}

impl Drop for FileKeeper {
    fn drop(&mut self) {
        self.release();
        // The command is sent by the call; its answer is not awaited.
        drop(self.server.stop(false));
    }
}

/// The last of a script stays.
fn next<T: Clone>(script: &mut VecDeque<T>) -> Option<T> {
    if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
}

async fn answer(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    let path = request.uri().path().to_owned();
    match path.strip_prefix("/waha").unwrap_or(&path) {
        "/api/server/version" => {
            return HttpResponse::Ok().json(json!({"version": "2026.7.1", "engine": shared.engine, "tier": "CORE"}));
        }
        "/api/server/status" => {
            return HttpResponse::Ok().json(json!({"startTimestamp": 1_700_000_000_000_i64, "uptime": 1}));
        }
        "/ping" => return HttpResponse::Ok().json(json!({"message": "pong"})),
        "/api/sessions" => return HttpResponse::Ok().json(json!([])),
        _ => {}
    }
    let key = request.headers().get("x-api-key").map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    let authorised = key.as_deref() == Some(KEY);
    let message = path.contains("/messages/");
    let (reply, found) = {
        let mut script = shared.script();
        script.asked.push(Asked { path: request.uri().to_string(), key });
        let reply = script.files.get_mut(&path).and_then(next);
        let found = if message {
            script.answered_with_the_last = script.messages.len() == 1;
            next(&mut script.messages).flatten()
        } else {
            None
        };
        (reply, found)
    };
    if path.contains("/api/") && !authorised {
        return HttpResponse::Unauthorized().json(json!({"message": "Unauthorized", "statusCode": 401}));
    }
    if message {
        return match found {
            Some(message) => HttpResponse::Ok().json(message),
            None => HttpResponse::NotFound()
                .json(json!({"message": "Message not found", "error": "Not Found", "statusCode": 404})),
        };
    }
    match reply {
        Some(Reply::File(kind, bytes)) => HttpResponse::Ok().content_type(kind).body(bytes),
        Some(Reply::Status(status)) => {
            HttpResponse::build(StatusCode::from_u16(status).unwrap()).json(json!({"statusCode": status}))
        }
        Some(Reply::Redirect(location)) => HttpResponse::Found().insert_header(("Location", location)).finish(),
        Some(Reply::Claims(length)) => {
            let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"GIF89a"))]);
            HttpResponse::Ok().body(SizedStream::new(length, futures_util::StreamExt::chain(begun, stream::pending())))
        }
        Some(Reply::Zeros(length)) => {
            let pieces = length.div_ceil(PIECE);
            let piece =
                move |number: usize| Bytes::from_static(&[0; PIECE]).slice(..PIECE.min(length - number * PIECE));
            let body = stream::iter((0..pieces).map(move |number| Ok::<_, std::io::Error>(piece(number))));
            HttpResponse::Ok().body(SizedStream::new(length as u64, body))
        }
        Some(Reply::Endless) => {
            let piece = Bytes::from(vec![b'x'; PIECE]);
            HttpResponse::Ok().streaming(stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone())))
        }
        Some(Reply::Held(bytes)) => {
            let mut released = shared.released.subscribe();
            let _released =
                tokio::time::timeout(Duration::from_secs(60), released.wait_for(|released| *released)).await;
            HttpResponse::Ok().body(bytes)
        }
        None => HttpResponse::NotFound().json(json!({"message": "Not Found", "statusCode": 404})),
    }
}
