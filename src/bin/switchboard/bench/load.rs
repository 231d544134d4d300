//! The load: as little work a request as possible, since the client shares the machine with what it measures.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long each request took, shortest first, and how long all of them together.
pub struct Times {
    each: Vec<Duration>,
    pub took: Duration,
}

impl Times {
    pub fn new(mut each: Vec<Duration>, took: Duration) -> Self {
        each.sort_unstable();
        Self { each, took }
    }

    pub fn count(&self) -> f64 {
        f64::from(u32::try_from(self.each.len()).unwrap_or(u32::MAX)).max(1.0)
    }

    pub fn per_second(&self) -> f64 {
        self.count() / self.took.as_secs_f64()
    }

    /// In milliseconds: what `share` percent of the requests stayed within.
    pub fn percentile(&self, share: usize) -> f64 {
        let at = self.each.len().saturating_sub(1) * share / 100;
        self.each.get(at).copied().unwrap_or_default().as_secs_f64() * 1e3
    }
}

/// Until when requests are made: for some time, or until they have run out.
#[derive(Clone, Copy)]
pub enum Until {
    Elapsed(Duration),
    Made(usize),
}

/// Posts `requests` over `connections` at once, each answered before the connection's next; the connections take turns in
/// the list, and begin it anew until it is time to end.
pub async fn drive(
    address: &str,
    connections: usize,
    requests: &[Vec<u8>],
    until: Until,
    expected: u16,
) -> anyhow::Result<Times> {
    let requests = std::sync::Arc::new(requests.to_vec());
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..connections {
        let (address, requests) = (address.to_owned(), requests.clone());
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            let mut times = Vec::new();
            for place in (number..).step_by(connections) {
                let begun = Instant::now();
                match until {
                    Until::Elapsed(limit) if begun.duration_since(started) >= limit => break,
                    Until::Made(most) if place >= most => break,
                    _ => {}
                }
                let request = requests.get(place % requests.len().max(1)).context("nothing to post")?;
                let (status, body) = connection.exchange(request).await?;
                if status != expected {
                    bail!("a request was answered {status}: {}", String::from_utf8_lossy(&body));
                }
                times.push(begun.elapsed());
            }
            Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = clients.join_next().await {
        times.extend(ended??);
    }
    Ok(Times::new(times, started.elapsed()))
}

/// A request as bytes.
pub fn request(method: &str, path: &str, key: &str, body: Option<&Value>) -> Vec<u8> {
    with_headers(
        method,
        path,
        &format!("Authorization: Bearer {key}\r\n"),
        &body.map(Value::to_string).unwrap_or_default(),
    )
}

/// A request as bytes, with `headers` that each end in a line break.
pub fn with_headers(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\n{headers}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A connection that is kept alive.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 16 * 1024] })
    }

    /// The status and body that answer `request`.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
            let read = self.stream.read(self.buffer.get_mut(filled..).unwrap_or_default()).await?;
            if read == 0 {
                bail!("the connection was closed");
            }
            filled += read;
            let answer = self.buffer.get(..filled).unwrap_or_default();
            let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let (head, body) = answer.split_at(head + 4);
            let head = std::str::from_utf8(head)?.to_ascii_lowercase();
            let status: u16 =
                head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("an answer without status")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let length: usize = match length {
                Some(length) => length,
                None if status == 204 => 0,
                None => bail!("an answer without its length"),
            };
            if body.len() >= length {
                return Ok((status, body.to_vec()));
            }
        }
    }

    /// The JSON that answers `request`, which must succeed.
    pub async fn json(&mut self, request: &[u8]) -> anyhow::Result<Value> {
        let (status, answer) = self.exchange(request).await?;
        if !(200..300).contains(&status) {
            bail!("a request was answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        if answer.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&answer)?) }
    }

    pub async fn create(&mut self, path: &str, key: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(&request("POST", path, key, Some(body))).await.with_context(|| format!("POST {path}"))
    }
}

/// A text member of an answer.
pub fn member(value: &Value, name: &str) -> anyhow::Result<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("an answer without `{name}`"))
}
