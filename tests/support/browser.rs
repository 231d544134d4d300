//! A real browser, without a window: Chromium, driven over W3C WebDriver.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Process, eventually, free_port};

/// How long anything in the browser may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
const MISSING: &str = "this test needs Chromium and its driver: run deploy/browser.sh (on Debian it installs the packages \
     chromium and chromium-driver), or set CHROMEDRIVER and CHROMIUM to their programs";

/// A browser of one test; it ends when this is dropped.
pub struct Browser {
    session: String,
    http: reqwest::Client,
    // Behind the session: the driver ends when the browser is gone.
    _driver: Process,
    profile: PathBuf,
}

fn program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    if let Some(set) = std::env::var_os(variable) {
        return Some(set.into()).filter(|path: &PathBuf| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/bin".into(), "/usr/lib/chromium".into(), "/opt/homebrew/bin".into()]);
    let folders: Vec<PathBuf> = folders.collect();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file())
}

impl Browser {
    /// Starts a browser; panics, saying what is missing, where there is none.
    pub async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let driver = program("CHROMEDRIVER", &["chromedriver"]).expect(MISSING);
        let chromium = program("CHROMIUM", &["chromium", "chromium-browser", "google-chrome"]).expect(MISSING);
        let own = format!("browser-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(own);
        std::fs::create_dir_all(&profile).unwrap();
        let port = free_port();
        let mut command = Command::new(driver);
        command.arg(format!("--port={port}"));
        let home = profile.display().to_string();
        let mut driver = Process::start(command, [("HOME", home.clone()), ("TMPDIR", home)]);
        let base = format!("http://127.0.0.1:{port}");
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        // The driver leaves connections open, so this is no matter for `wait_ready`.
        eventually(Duration::from_secs(30), "the browser's driver", async || {
            assert!(driver.ended().is_none(), "the driver has ended:\n{}", driver.output());
            let status = http.get(format!("{base}/status")).timeout(Duration::from_secs(2)).send().await.ok()?;
            status.status().is_success().then_some(())
        })
        .await;
        // A container has neither a sandbox for root nor much shared memory.
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--no-proxy-server".to_owned(),
            format!("--user-data-dir={}", profile.join("profile").display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = http.post(format!("{base}/session")).json(&wanted).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "the browser does not start: {body}\n{}", driver.output());
        let id = body["value"]["sessionId"].as_str().unwrap();
        Self { session: format!("{base}/session/{id}"), http, _driver: driver, profile }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self.http.request(method.clone(), format!("{}{path}", self.session));
        let request = if method == Method::GET { request } else { request.json(body) };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{method} {path}: {body}");
        body["value"].clone()
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.call(Method::POST, "/url", &json!({"url": url})).await;
    }

    /// The size of the window.
    pub async fn resize(&self, width: u32, height: u32) {
        self.call(Method::POST, "/window/rect", &json!({"width": width, "height": height})).await;
    }

    /// What a function's body returns in the page.
    pub async fn run(&self, script: &str) -> Value {
        self.call(Method::POST, "/execute/sync", &json!({"script": script, "args": []})).await
    }

    async fn element(&self, selector: &str) -> String {
        let using = json!({"using": "css selector", "value": selector});
        let found = self.call(Method::POST, "/element", &using).await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// Clicks as somebody with a mouse does.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.call(Method::POST, &format!("/element/{element}/click"), &json!({})).await;
    }

    /// Types into a field.
    pub async fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.call(Method::POST, &format!("/element/{element}/value"), &json!({"text": text})).await;
    }

    /// What can be read on the page.
    pub async fn text(&self) -> String {
        self.run("return document.body.innerText").await.as_str().unwrap().to_owned()
    }

    /// Waits until a function's body returns something, and answers it.
    pub async fn until(&self, what: &str, script: &str) -> Value {
        let nothing = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value == "";
        eventually(PATIENCE, what, async || Some(self.run(script).await).filter(|value| !nothing(value))).await
    }

    /// What the browser complained about since the last call.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.call(Method::POST, "/se/log", &json!({"type": "browser"})).await;
        let entries = log.as_array().unwrap().iter();
        entries.map(|entry| format!("{}: {}", entry["level"], entry["message"])).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let session = std::mem::take(&mut self.session);
        // On a thread of its own, as there is no waiting here; without it the browser would outlive its driver.
        let ending = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
                drop(http.delete(session).send().await);
            });
        });
        let _ended = ending.join();
        let _best_effort = std::fs::remove_dir_all(&self.profile);
    }
}
