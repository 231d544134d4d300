//! The real binary, as a process that can be killed.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use super::eventually;

/// A running process; killed when dropped. Its output goes to a file, which stays only when the test fails.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `switchboard` with `arguments` and no environment but `environment`.
    pub fn switchboard<'a>(arguments: &[&str], environment: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
        command.args(arguments);
        Self::start(command, environment)
    }

    /// Starts `command` with no environment but `environment`.
    pub fn start<'a>(mut command: Command, environment: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "process-{}-{}.log",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        let log = File::create(&output).expect("the target directory can be written");
        // Without PATH a shell finds nothing; everything else would make the test depend on who runs it.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let child = command
            .env_clear()
            .env("PATH", path)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|fault| panic!("{command:?}: {fault}"));
        Self { child, output }
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything written so far, to either stream.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits until a GET of `url` answers 200; panics with the output when the process ends before or 30 seconds are over.
    pub async fn wait_ready(&mut self, url: &str) {
        let url: Url = url.parse().expect("a url");
        let mut last = String::from("no answer");
        let ready = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                if let Some(status) = self.ended() {
                    panic!("ended with {status} before {url} answered 200; it wrote:\n{}", self.output());
                }
                match status_of(&url).await {
                    Some(200) => return,
                    Some(other) => last = format!("status {other}"),
                    None => {}
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert!(ready.is_ok(), "{url} did not answer 200 in 30 s ({last}); the process wrote:\n{}", self.output());
    }

    /// Waits until `text` was written; panics with the output when `timeout` is over.
    pub async fn wait_output(&self, timeout: Duration, text: &str) {
        let seen = tokio::time::timeout(timeout, async {
            while !self.output().contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert!(seen.is_ok(), "{text:?} was not written in {timeout:?}, but:\n{}", self.output());
    }

    /// SIGKILL: no chance to clean up. Returns when the process is gone.
    pub fn kill9(&mut self) {
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// SIGTERM; returns when the process has ended by itself, and panics with its output when it does not within `timeout`.
    pub async fn terminate(&mut self, timeout: Duration) -> ExitStatus {
        self.signal("TERM");
        let what = format!("process {} to end after SIGTERM", self.id());
        eventually(timeout, &what, async || self.ended()).await
    }

    /// Sends a signal by its name, such as `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.id())).status();
        assert!(status.expect("a shell").success(), "kill -{name} failed");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- output of process {} ---\n{}", self.child.id(), self.output());
        }
        let _best_effort = std::fs::remove_file(&self.output);
    }
}

/// A TCP port of this machine that nobody listens on at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// The status of a GET, without a client's pool and retries in between; `None` when there is no answer in two seconds.
async fn status_of(url: &Url) -> Option<u16> {
    let exchange = async {
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        let request = format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", url.path());
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        String::from_utf8_lossy(&answer).split_whitespace().nth(1)?.parse().ok()
    };
    tokio::time::timeout(Duration::from_secs(2), exchange).await.ok()?
}
